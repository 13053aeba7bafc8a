//! A line that holds every frame for a fixed time; kernels without netem have no other.
//!
//! It is a TAP interface on the bed's bridge. The bridge neither floods to it nor learns from it, so it sees only
//! frames that the fault program sends there, and they arrive as if nothing had held them.

use std::{
    collections::VecDeque,
    fs::File,
    io::{ErrorKind, Read, Write},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

use crate::{namespace::Namespace, tap};

/// Longest sleep, so that the end of the line is noticed.
const NAP: Duration = Duration::from_millis(50);
/// Longest frame: the bridge's MTU and the Ethernet header.
const FRAME: usize = 1500 + 18;

/// A running line; it and its interface end when it is dropped.
#[derive(Debug)]
pub struct DelayLine {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DelayLine {
    /// Adds a line of the given `name` to the bridge `br0` of `lan`.
    ///
    /// # Errors
    /// No TAP interface can be made, or the bridge does not take it.
    pub fn start(lan: &Namespace, name: &str, hold: Duration) -> Result<Self> {
        let wire = lan.within(|| tap::open(name))?;
        lan.ip(&format!(
            "link set dev {name} addrgenmode none master br0\n\
             link set dev {name} type bridge_slave learning off flood off mcast_flood off bcast_flood off\n\
             link set dev {name} up\n"
        ))?;
        let ended = Arc::new(AtomicBool::new(false));
        let seen = ended.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || carry(wire, hold, &seen));
        Ok(Self { ended, thread: Some(thread.context("starting the delay line")?) })
    }
}

impl Drop for DelayLine {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A line that panicked has ended as well.
            let _ = thread.join();
        }
    }
}

/// Takes frames in, and out again when they are due, in order.
fn carry(mut wire: File, hold: Duration, ended: &AtomicBool) {
    let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut frame = vec![0; FRAME];
    while !ended.load(Ordering::Relaxed) {
        let now = Instant::now();
        while let Some((_, due)) = held.pop_front_if(|(at, _)| *at <= now) {
            // A frame that the bridge does not take is lost, as on any line.
            let _ = wire.write(&due);
        }
        let nap = held.front().map_or(NAP, |(at, _)| at.duration_since(now).min(NAP));
        // An interrupted sleep is a short one.
        let _ = ppoll(&mut [PollFd::new(wire.as_fd(), PollFlags::POLLIN)], Some(TimeSpec::from(nap)), None);
        loop {
            match wire.read(&mut frame) {
                Ok(length) => held.push_back((Instant::now() + hold, frame[..length].to_vec())),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The interface is down or gone, and says so without a pause.
                Err(_) => {
                    thread::sleep(NAP);
                    break;
                }
            }
        }
    }
}
