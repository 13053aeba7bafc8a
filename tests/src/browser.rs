//! A real browser without a screen: Debian's chromium, driven through chromedriver (W3C WebDriver).

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    http,
    process::{Process, bound},
    watch::until,
};

/// Where Debian's package chromium-driver puts it.
const DRIVER: &str = "/usr/bin/chromedriver";
/// Its profile lives in a `/tmp` of its own, and all its processes in one process namespace: both end with it.
const SET_UP: &str = "mount -t tmpfs tmpfs /tmp && export HOME=/tmp && exec \"$@\"";

/// Whether the browser and its driver are installed; otherwise which packages are missing.
///
/// # Errors
/// One of them is missing; the text names the packages.
pub fn available() -> Result<(), String> {
    let there = |path: &str| Path::new(path).exists();
    if there(DRIVER) && there("/usr/bin/chromium") {
        Ok(())
    } else {
        Err("needs the packages chromium and chromium-driver".to_owned())
    }
}

/// One browser with one page.
#[derive(Debug)]
pub struct Browser {
    _driver: Process,
    address: SocketAddr,
    session: String,
}

impl Browser {
    /// Starts it.
    ///
    /// # Errors
    /// It is not installed, or does not start within 30 seconds.
    pub fn start() -> Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = bound("unshare");
        command.args([
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--mount-proc",
            "sh",
            "-c",
            SET_UP,
            "sh",
        ]);
        command.arg(DRIVER).arg(format!("--port={port}"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let driver = Process::spawn("chromedriver", command)?;
        until(Duration::from_secs(10), "chromedriver answers", || Ok(http::get(address, "/status").ok()))?;
        let options = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {
            "binary": "/usr/bin/chromium",
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        }}}});
        let answer = http::post(address, "/session", &options).context("starting chromium")?;
        let session = answer["value"]["sessionId"].as_str().context("chromedriver names no session")?;
        Ok(Self { _driver: driver, address, session: session.to_owned() })
    }

    fn say(&self, verb: &str, body: &Value) -> Result<Value> {
        let mut answer = http::post(self.address, &format!("/session/{}/{verb}", self.session), body)?;
        Ok(answer["value"].take())
    }

    /// Goes to a page and waits until it is loaded.
    ///
    /// # Errors
    /// Nobody serves it.
    pub fn open(&self, url: &str) -> Result<()> {
        self.say("url", &json!({"url": url})).map(drop)
    }

    /// Shows pages from now on as to a person who set the system to dark.
    ///
    /// # Errors
    /// The browser refuses.
    pub fn prefer_dark(&self) -> Result<()> {
        let features = json!([{"name": "prefers-color-scheme", "value": "dark"}]);
        let command = json!({"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}});
        self.say("goog/cdp/execute", &command).map(drop)
    }

    /// Runs the body of a JavaScript function in the page and returns what it returns.
    ///
    /// # Errors
    /// It throws.
    pub fn run(&self, script: &str) -> Result<Value> {
        self.say("execute/sync", &json!({"script": script, "args": []}))
    }
}
