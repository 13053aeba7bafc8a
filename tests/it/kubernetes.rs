//! `bramble kubernetes` before a stand-in of K3s' server: what the kubelet's certificate lets see, and what another does not.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::{
    k3s::{Authority, Cluster, Pair, Server, Settings},
    lab::Binaries,
    process::{Process, bound},
    watch::until,
};

const PATIENCE: Duration = Duration::from_secs(30);
/// It looks every 30 s.
const TWO_LOOKS: Duration = Duration::from_secs(90);
const NODE: &str = "/api/v1/nodes/pi1";

/// A running program, ended with its guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `bramble kubernetes` as systemd does, with this certificate; `more` stands in its configuration.
fn start(folder: &Path, server: &Server, pair: &Pair, more: &str) -> Result<Running> {
    fs::create_dir_all(folder)?;
    for (name, content) in [
        ("kubelet.crt", &pair.certificates),
        ("kubelet.key", &pair.key),
        ("server-ca.crt", &server.cacerts().to_owned()),
    ] {
        fs::write(folder.join(name), content)?;
    }
    // Services whose addresses are this machine's own: nothing leaves it, and nobody is there.
    let configuration = folder.join("bramble.toml");
    fs::write(&configuration, format!("[cluster]\nservices = \"127.77.0.0/16\"\n{more}"))?;
    let program = Binaries::within(&crate::programs()?)?.bramble;
    Ok(Running(
        Command::new(program)
            .arg("--config")
            .arg(&configuration)
            .args([
                "kubernetes",
                "--node",
                "pi1",
                "--api",
                &format!("https://127.0.0.1:{}", server.address().port()),
            ])
            .env("CREDENTIALS_DIRECTORY", folder)
            .env("RUNTIME_DIRECTORY", folder)
            .stderr(Stdio::null())
            .spawn()
            .context("starting bramble kubernetes")?,
    ))
}

/// What it writes for the agent.
fn look(folder: &Path, server: &Server, pair: &Pair) -> Result<Value> {
    let _running = start(folder, server, pair, "")?;
    looked(folder)
}

fn looked(folder: &Path) -> Result<Value> {
    until(PATIENCE, "it has looked once", || Ok(fs::read_to_string(folder.join("look")).ok()))
        .and_then(|text| Ok(serde_json::from_str(&text)?))
}

pub(crate) fn the_kubelets_certificate_reads_its_node_and_a_foreign_one_does_not() -> Result<()> {
    let settings = Settings::new("password")?;
    let kubelet = settings.clients.client("system:node:pi1", "system:nodes")?;
    let server = Server::start(settings, Cluster::default(), "127.0.0.1:0".parse()?)?;
    server.cluster(|cluster| {
        let conditions = json!([
            {"type": "Ready", "status": "False", "message": "container runtime network not ready"},
            {"type": "DiskPressure", "status": "False", "message": "kubelet has no disk pressure"},
        ]);
        cluster.put(
            "/api/v1/nodes/pi1",
            json!({"metadata": {"name": "pi1"}, "status": {"conditions": conditions}}),
        );
    });
    let folder = std::env::temp_dir().join(format!("bed-kubernetes-{}", std::process::id()));
    let seen = look(&folder.join("own"), &server, &kubelet)?;
    let first = &seen["node"]["Ok"][0];
    ensure!(first["kind"] == "Ready" && first["status"] == "False", "{seen}");
    ensure!(first["message"] == "container runtime network not ready", "{seen}");
    ensure!(seen["api_ms"].as_f64().is_some_and(|took| took > 0.0), "{seen}");
    let phases = seen["api_phases_ms"].as_array().context("each phase is timed")?;
    let phases: Vec<f64> = phases.iter().filter_map(Value::as_f64).collect();
    ensure!(phases.len() == 3 && phases.iter().all(|took| *took > 0.0), "{seen}");
    ensure!(phases.iter().sum::<f64>() <= seen["api_ms"].as_f64().unwrap_or_default(), "{seen}");
    ensure!(
        seen["service_ms"]["Err"].as_str().is_some_and(|why| why.starts_with("127.77.0.1:443")),
        "{seen}"
    );
    ensure!(seen["dns_ms"]["Err"].as_str().is_some_and(|why| why.starts_with("127.77.0.10:53")), "{seen}");

    let foreign = Authority::single("another")?.client("system:node:pi1", "system:nodes")?;
    let seen = look(&folder.join("foreign"), &server, &foreign)?;
    ensure!(seen["node"]["Err"].as_str().is_some_and(|why| !why.is_empty()), "{seen}");
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// bramble's condition of the Node, as Kubernetes has it.
fn condition(server: &Server) -> Option<Value> {
    server.cluster(|cluster| {
        let conditions = cluster.get(NODE)?["status"]["conditions"].as_array()?;
        conditions.iter().find(|condition| condition["type"] == "BrambleProblem").cloned()
    })
}

/// The Events that were made, of bramble and of the Node alone.
fn events(server: &Server) -> Vec<Value> {
    server.cluster(|cluster| cluster.below("/api/v1/namespaces/default/events/"))
}

pub(crate) fn kubectl_describe_node_tells_what_the_agent_knows_where_its_owner_wants_that() -> Result<()> {
    let settings = Settings::new("password")?;
    let kubelet = settings.clients.client("system:node:pi1", "system:nodes")?;
    let server = Server::start(settings, Cluster::default(), "127.0.0.1:0".parse()?)?;
    let kubelets = json!({"type": "Ready", "status": "True", "message": "kubelet is posting ready status"});
    server.cluster(|cluster| cluster.put(NODE, json!({"status": {"conditions": [kubelets]}})));
    let folder = std::env::temp_dir().join(format!("bed-tell-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let agents = format!(
        "[node]\nname = \"pi1\"\nstate_dir = {0:?}\nruntime_dir = {0:?}\n[mqtt]\nport = {port}\n",
        folder.join("agent")
    );

    // Nobody asked for it: nothing is written.
    let untouched = server.cluster(|cluster| cluster.get(NODE).cloned());
    let off = start(&folder.join("off"), &server, &kubelet, &agents)?;
    ensure!(looked(&folder.join("off"))?["told"].is_null(), "it says that it told something");
    drop(off);
    ensure!(server.cluster(|cluster| cluster.get(NODE).cloned()) == untouched, "it wrote unasked");

    // The agent is not there yet: that is no good news, and none of the kubelet's conditions goes.
    let told = format!("{agents}[kubernetes]\ntell = true\n");
    let on = start(&folder.join("on"), &server, &kubelet, &told)?;
    let silent = until(PATIENCE, "the Node has bramble's condition", || Ok(condition(&server)))?;
    ensure!(silent["status"] == "Unknown" && silent["reason"] == "AgentSilent", "{silent}");
    let kept = server.cluster(|cluster| cluster.get(NODE).cloned()).context("there is a Node")?;
    ensure!(kept["status"]["conditions"][0] == kubelets, "{kept}");

    fs::create_dir_all(folder.join("agent"))?;
    fs::write(folder.join("agent.toml"), &agents)?;
    let program = Binaries::within(&crate::programs()?)?.bramble;
    let mut command = bound(&program.display().to_string());
    command.arg("--config").arg(folder.join("agent.toml")).arg("run").stderr(Stdio::null());
    let agent = Process::spawn("the agent", command)?;
    let bad = until(TWO_LOOKS, "the Node has a problem", || {
        Ok(condition(&server).filter(|condition| condition["status"] == "True"))
    })?;
    ensure!(bad["message"].as_str().is_some_and(|text| !text.is_empty()), "{bad}");
    ensure!(bad["lastTransitionTime"].is_string() && bad["lastHeartbeatTime"].is_string(), "{bad}");
    ensure!(events(&server).is_empty(), "what stood at its start made Events: {:?}", events(&server));

    // The broker comes: one problem less.
    let mut command = bound("mosquitto");
    command.args(["-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let _broker = Process::spawn("mosquitto", command)?;
    let event = until(TWO_LOOKS, "an Event says that the broker is there", || {
        Ok(events(&server).into_iter().find(|event| event["reason"] == "Broker"))
    })?;
    ensure!(event["type"] == "Normal" && event["involvedObject"]["uid"] == "pi1", "{event}");
    ensure!(event["message"].as_str().is_some_and(|text| text.starts_with("Over: ")), "{event}");
    drop(on);

    // Switched off again, it takes back what it told.
    let off = start(&folder.join("off"), &server, &kubelet, &agents)?;
    until(PATIENCE, "bramble's condition is gone", || Ok(condition(&server).is_none().then_some(())))?;
    // They write there until they are gone.
    drop((off, agent));
    fs::remove_dir_all(&folder)?;
    Ok(())
}
