//! The little HTTP that the bed speaks with the page, chromedriver and Home Assistant: one request, one connection.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Reads `path`.
///
/// # Errors
/// Nobody listens, or the answer is not 200.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    request(address, "GET", path, None, None)
}

/// Sends JSON to `path` and returns the JSON answer.
///
/// # Errors
/// Nobody listens, or the answer is not 200, or not JSON.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> Result<Value> {
    let answer = request(address, "POST", path, Some(body), None)?;
    serde_json::from_str(&answer).with_context(|| format!("reading the answer of {path}: {answer}"))
}

/// One request, with a bearer's token where one is given; the answer's body.
///
/// # Errors
/// Nobody listens, or the answer is not 200.
pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Value>,
    token: Option<&str>,
) -> Result<String> {
    let connected = TcpStream::connect_timeout(&address, Duration::from_secs(2));
    let mut stream = connected.with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let bearer = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{bearer}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())?;
    let (status, body) =
        answer(BufReader::new(stream)).with_context(|| format!("{method} {address}{path}"))?;
    let body = String::from_utf8_lossy(&body).into_owned();
    if status != "200" {
        bail!("{method} {address}{path}: status {status}: {}", body.chars().take(500).collect::<String>());
    }
    Ok(body)
}

/// Reads status and body; the body's length is told before it, or before each of its chunks, or by the end.
pub(crate) fn answer(mut from: impl BufRead) -> Result<(String, Vec<u8>)> {
    let status = line(&mut from)?.split_whitespace().nth(1).context("an answer without a status")?.to_owned();
    let (mut length, mut chunked) = (None, false);
    loop {
        let header = line(&mut from)?.to_ascii_lowercase();
        match header.split_once(':').map(|(name, value)| (name, value.trim())) {
            Some(("content-length", value)) => length = Some(value.parse::<u64>()?),
            Some(("transfer-encoding", value)) => chunked = value == "chunked",
            Some(_) => {}
            None => break,
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let size = u64::from_str_radix(line(&mut from)?.split(';').next().unwrap_or_default(), 16)?;
            take(&mut from, size, &mut body)?;
            line(&mut from)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = length {
        take(&mut from, length, &mut body)?;
    } else {
        from.read_to_end(&mut body)?;
    }
    Ok((status, body))
}

fn line(from: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn take(from: &mut impl BufRead, size: u64, body: &mut Vec<u8>) -> Result<()> {
    let taken = from.take(size).read_to_end(body)? as u64;
    ensure!(taken == size, "the answer ends after {taken} of {size} bytes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_of_all_three_kinds_are_read_whole() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellomore",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x\r\nllo\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nhello",
        ] {
            let (status, body) = answer(text.as_bytes()).unwrap();
            assert_eq!((status.as_str(), &body[..]), ("200", &b"hello"[..]), "{text}");
        }
        assert!(answer(&b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"[..]).is_err());
        assert!(answer(&b""[..]).is_err());
    }
}
