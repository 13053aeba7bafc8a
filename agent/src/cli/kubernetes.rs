//! `bramble kubernetes`: looks at the cluster with the kubelet's certificate; off until switched on.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, anyhow};

use crate::{
    config::Config,
    host::{Host, http::Url, state::State},
    k3s::api::ENDPOINT,
    kubernetes::{DIRECTORY, Place, client, run as look, tell::Teller},
    notify::{Asked, Service},
};

/// Look at the Node object, the API, the cluster's DNS and a service, for the agent to report; with `tell = true` in
/// `[kubernetes]` also tell Kubernetes what bramble knows of the node, for `kubectl describe node`. It holds the kubelet's
/// certificate, so it is a service of its own and off until you want it: sudo systemctl enable --now bramble-kubernetes
#[derive(Debug, clap::Args)]
pub struct Kubernetes {
    /// The API, as this node reaches it.
    #[arg(long, value_name = "URL", default_value = ENDPOINT)]
    api: String,
    /// The Node's name; the host's name when not given.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

/// Runs until it is asked to end.
///
/// # Errors
/// systemd handed no certificate over, or the file for the agent cannot be written.
pub fn run(args: &Kubernetes, config: &Config, host: &Host, path: Option<&str>) -> anyhow::Result<ExitCode> {
    let credentials = std::env::var("CREDENTIALS_DIRECTORY");
    let credentials =
        credentials.context("no credentials; systemd hands them over: systemctl start bramble-kubernetes")?;
    let client = client(host, &credentials)?;
    let api = Url::parse(&args.api).map_err(|why| anyhow!("--api {}: {why}", args.api))?;
    let node = match &args.node {
        Some(node) => node.clone(),
        None => host.text("/proc/sys/kernel/hostname")?.trim().to_ascii_lowercase(),
    };
    let place = Place::of(api, node, config.cluster.services.network);
    let directory = std::env::var("RUNTIME_DIRECTORY").unwrap_or_else(|_| DIRECTORY.to_owned());
    let state = State::new(Path::new(&directory));
    let teller = Teller::new(config.kubernetes.tell.then(|| config.agent_socket()));
    super::block_on(async {
        let mut service = Service::start(host, path, super::load)?;
        service.ready("looking at the cluster");
        tokio::select! {
            ended = look(&client, &place, &state, teller) => ended?,
            // What it has of the configuration, it reads at its start.
            _ = async { while let Asked::Reload(_) = service.asked().await {} } => {}
        }
        Ok(ExitCode::SUCCESS)
    })?
}
