"""What people write to see a Pi over MQTT: psutil, paho, a loop. A yardstick of `cargo xtask bench agent`.

Usage: psutil_paho.py HOST PORT CA SECONDS
"""

import json
import sys
import time

import paho.mqtt.client as mqtt
import psutil

host, port, ca, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
client = mqtt.Client("psutil-paho")
client.tls_set(ca)
client.will_set("psutil/available", "offline", retain=True)
client.connect(host, port)
client.loop_start()
client.publish("psutil/available", "online", qos=1, retain=True)
while True:
    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
    state = {
        "cpu": psutil.cpu_percent(),
        "load": psutil.getloadavg(),
        "memory": memory.percent,
        "swap": psutil.swap_memory().percent,
        "disk": disk.percent,
        "sent": network.bytes_sent,
        "received": network.bytes_recv,
        "uptime": time.time() - psutil.boot_time(),
        "temperatures": {name: [t.current for t in all] for name, all in psutil.sensors_temperatures().items()},
    }
    client.publish("psutil/state", json.dumps(state), qos=1, retain=True)
    time.sleep(seconds)
