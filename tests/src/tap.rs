//! An Ethernet interface whose wire is a file: frames that the kernel sends are read, frames written are received.
#![allow(unsafe_code, reason = "naming a TAP interface takes one ioctl that nobody wraps")]

use std::{
    fs::{File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

use anyhow::{Context, Result, ensure};

nix::ioctl_write_ptr_bad!(
    set_interface,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// Makes a TAP interface in the calling thread's network namespace; it is gone when the file is closed.
///
/// The file does not block; each read and write is one frame.
pub(crate) fn open(name: &str) -> Result<File> {
    ensure!(name.len() < libc::IFNAMSIZ, "{name} is too long for an interface");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let file = file.context("opening /dev/net/tun")?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short,
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call and whose name ends with a zero.
    unsafe { set_interface(file.as_raw_fd(), &raw mut request) }
        .with_context(|| format!("making the interface {name}"))?;
    Ok(file)
}
