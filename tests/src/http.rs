//! The little HTTP that the bed speaks with the page and with chromedriver: one request, one connection.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Reads `path`.
///
/// # Errors
/// Nobody listens, or the answer is not 200.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    request(address, "GET", path, None)
}

/// Sends JSON to `path` and returns the JSON answer.
///
/// # Errors
/// Nobody listens, or the answer is not 200, or not JSON.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> Result<Value> {
    let answer = request(address, "POST", path, Some(body))?;
    serde_json::from_str(&answer).with_context(|| format!("reading the answer of {path}: {answer}"))
}

fn request(address: SocketAddr, method: &str, path: &str, body: Option<&Value>) -> Result<String> {
    let connected = TcpStream::connect_timeout(&address, Duration::from_secs(2));
    let mut stream = connected.with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    // Version 1.0: the answer comes in one piece and ends with the connection.
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("{method} {address}{path}"))?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a header")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        bail!("{method} {address}{path}: status {status}: {}", body.chars().take(500).collect::<String>());
    }
    Ok(body.to_owned())
}
