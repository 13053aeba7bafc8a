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
    watch::until,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A running program, ended with its guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `bramble kubernetes` writes for the agent when systemd hands it this certificate.
fn look(folder: &Path, server: &Server, pair: &Pair) -> Result<Value> {
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
    fs::write(&configuration, "[cluster]\nservices = \"127.77.0.0/16\"\n")?;
    let program = Binaries::within(&crate::programs()?)?.bramble;
    let _running = Running(
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
    );
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
    let folder = std::env::temp_dir().join(format!("bramble-kubernetes-{}", std::process::id()));
    let seen = look(&folder.join("own"), &server, &kubelet)?;
    let first = &seen["node"]["Ok"][0];
    ensure!(first["kind"] == "Ready" && first["status"] == "False", "{seen}");
    ensure!(first["message"] == "container runtime network not ready", "{seen}");
    ensure!(seen["api_ms"].as_f64().is_some_and(|took| took > 0.0), "{seen}");
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
