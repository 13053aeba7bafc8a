//! The mailbox of a Raspberry Pi's firmware, `/dev/vcio`: questions alone, never a setting.
//!
//! A message is 32-bit words: size in bytes, 0, then one tag (its number, room for its values in bytes, their length,
//! the values), then 0. The firmware answers in place: word 1 becomes 0x8000_0000, the tag's length gets bit 31.
//! Sources: drivers/char/broadcom/vcio.c, include/soc/bcm2835/raspberrypi-firmware.h; raspberrypi/utils, vcgencmd.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

use super::{Host, Unreadable, errno_of, failed};

const DEVICE: &str = "/dev/vcio";

/// What the firmware is asked for; linux names them `RPI_FIRMWARE_...`.
const GET_FIRMWARE_REVISION: u32 = 0x0000_0001;
const GET_VOLTAGE: u32 = 0x0003_0003;
const GET_THROTTLED: u32 = 0x0003_0046;
const GET_CLOCK_MEASURED: u32 = 0x0003_0047;
const GET_GENCMD_RESULT: u32 = 0x0003_0080;

/// The processor's clock and the core's voltage, by the firmware's numbers.
const ARM_CLOCK: u32 = 3;
const CORE: u32 = 1;

const ANSWERED: u32 = 0x8000_0000;

/// Words of text that a command's answer may have.
const TEXT: usize = 256;

/// Whoever answers messages: the firmware behind the device, or a stand-in in tests.
pub trait Mailbox {
    /// Answers in place.
    ///
    /// # Errors
    /// The device's own.
    fn exchange(&mut self, message: &mut [u32]) -> io::Result<()>;
}

/// The device.
#[derive(Debug)]
pub struct Vcio(File);

impl Mailbox for Vcio {
    fn exchange(&mut self, message: &mut [u32]) -> io::Result<()> {
        // _IOWR(100, 0, char *)
        const PROPERTY: u64 = 3 << 30 | (size_of::<*const u8>() as u64) << 16 | 100 << 8;
        #[allow(unsafe_code, reason = "no crate of ours wraps this call")]
        // SAFETY: the driver reads and writes as many bytes as the first word says, which `ask` sets to the slice's size.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), PROPERTY as _, message.as_mut_ptr()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Host {
    /// Opens the mailbox; `None` on a machine that has none. Only of the running machine.
    pub fn mailbox(&self) -> Result<Option<Vcio>, Unreadable> {
        if !self.is_live() {
            return Err(Unreadable::not_live(DEVICE));
        }
        // To read is enough to ask, and CAP_DAC_READ_SEARCH is enough to read.
        match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOCTTY).open(DEVICE) {
            Ok(device) => Ok(Some(Vcio(device))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(DEVICE, errno_of(&error))),
        }
    }
}

/// The throttling word: bit 0 under-voltage, 1 frequency capped, 2 throttled, 3 soft temperature limit; 16 to 19 the same
/// since somebody last cleared them. It is asked for without clearing any.
///
/// # Errors
/// See [`Unanswered`]; of all questions here.
pub fn throttled(mailbox: &mut dyn Mailbox) -> Result<u32, Unanswered> {
    Ok(ask(mailbox, GET_THROTTLED, [0])?[0])
}

/// When the firmware was built, in seconds since 1970.
///
/// # Errors
/// See [`throttled`].
pub fn revision(mailbox: &mut dyn Mailbox) -> Result<u32, Unanswered> {
    Ok(ask(mailbox, GET_FIRMWARE_REVISION, [0])?[0])
}

/// The core's voltage, microvolts.
///
/// # Errors
/// See [`throttled`].
pub fn core_voltage(mailbox: &mut dyn Mailbox) -> Result<u32, Unanswered> {
    Ok(ask(mailbox, GET_VOLTAGE, [CORE, 0])?[1])
}

/// The processor's clock as it is measured, Hz: what the kernel asked for, less what the firmware took away.
///
/// # Errors
/// See [`throttled`].
pub fn clock(mailbox: &mut dyn Mailbox) -> Result<u32, Unanswered> {
    Ok(ask(mailbox, GET_CLOCK_MEASURED, [ARM_CLOCK, 0])?[1])
}

/// What `vcgencmd pmic_read_adc` prints: voltage and current of each rail, on boards with such a chip.
///
/// # Errors
/// See [`throttled`]; [`Unanswered::Unknown`] on a board without.
pub fn rails(mailbox: &mut dyn Mailbox) -> Result<String, Unanswered> {
    // The first word is the command's own error; the text stands behind it, both ways.
    let mut values = [0; TEXT + 1];
    for (word, bytes) in values[1..].iter_mut().zip(b"pmic_read_adc\0\0\0".chunks(4)) {
        *word = u32::from_le_bytes(bytes.try_into().expect("cut into fours"));
    }
    let answer = ask(mailbox, GET_GENCMD_RESULT, values)?;
    if answer[0] != 0 {
        return Err(Unanswered::Unknown);
    }
    let bytes: Vec<u8> =
        answer[1..].iter().flat_map(|word| word.to_le_bytes()).take_while(|b| *b != 0).collect();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if text.starts_with("error=") { Err(Unanswered::Unknown) } else { Ok(text) }
}

/// Why the firmware gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The device refused the message.
    #[error("{DEVICE}: {0}")]
    Device(#[from] io::Error),
    /// This firmware does not know the question.
    #[error("{DEVICE}: the firmware does not know the question")]
    Unknown,
}

fn ask<const N: usize>(
    mailbox: &mut dyn Mailbox,
    tag: u32,
    values: [u32; N],
) -> Result<[u32; N], Unanswered> {
    let mut message = Vec::with_capacity(N + 6);
    // Never more room than vcgencmd claims, which leaves a command's own error word out.
    let room = (N * 4).min(TEXT * 4) as u32;
    message.extend([((N + 6) * 4) as u32, 0, tag, room, 0]);
    message.extend(values);
    message.push(0);
    mailbox.exchange(&mut message)?;
    if message[1] != ANSWERED || message[4] & ANSWERED == 0 {
        return Err(Unanswered::Unknown);
    }
    Ok(message[5..5 + N].try_into().expect("the message has room for as many"))
}

#[cfg(test)]
pub(crate) mod stand_in {
    //! Answers messages as the firmware does, as far as its sources tell. It stands in for `/dev/vcio`, which only a Pi has.

    use super::*;

    #[derive(Default)]
    pub(crate) struct Firmware {
        /// Bits 0 to 3 as they are now, 16 to 19 until cleared.
        pub(crate) throttled: u32,
        pub(crate) rails: Option<&'static str>,
        pub(crate) broken: bool,
    }

    impl Mailbox for Firmware {
        fn exchange(&mut self, message: &mut [u32]) -> io::Result<()> {
            if self.broken {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
            assert_eq!(message[0] as usize, message.len() * 4, "the size is what the driver copies");
            assert_eq!((message[1], message.last()), (0, Some(&0)), "a request, and its end");
            assert!(message[3] as usize <= (message.len() - 6) * 4, "the values lie inside");
            let length = match message[2] {
                GET_FIRMWARE_REVISION => {
                    message[5] = 1_727_096_576;
                    4
                }
                GET_THROTTLED => {
                    // The low half of the request names the sticky bits to clear, after this answer.
                    let clear = message[5] << 16;
                    message[5] = self.throttled;
                    self.throttled &= !clear;
                    4
                }
                GET_VOLTAGE if message[5] == CORE => {
                    message[6] = 876_800;
                    8
                }
                GET_CLOCK_MEASURED if message[5] == ARM_CLOCK => {
                    message[6] = 1_500_398_464;
                    8
                }
                GET_GENCMD_RESULT => {
                    let text = self.rails.unwrap_or("error=1 error_msg=\"Command not registered\"");
                    let mut bytes = text.as_bytes().to_vec();
                    bytes.resize(TEXT * 4, 0);
                    for (word, bytes) in message[6..].iter_mut().zip(bytes.chunks(4)) {
                        *word = u32::from_le_bytes(bytes.try_into().unwrap());
                    }
                    text.len() as u32
                }
                // Unknown tags keep their request's length word, and the whole is an error.
                _ => {
                    message[1] = 0x8000_0001;
                    return Ok(());
                }
            };
            message[1] = ANSWERED;
            message[4] = ANSWERED | length;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{stand_in::Firmware, *};

    #[test]
    fn what_is_asked_for_is_answered_and_nothing_is_cleared() {
        let mut firmware =
            Firmware { throttled: 0x5_0005, rails: Some("EXT5V_V volt(24)=5.1V"), broken: false };
        for _ in 0..2 {
            assert_eq!(throttled(&mut firmware).unwrap(), 0x5_0005);
        }
        assert_eq!(core_voltage(&mut firmware).unwrap(), 876_800);
        assert_eq!(clock(&mut firmware).unwrap(), 1_500_398_464);
        assert_eq!(revision(&mut firmware).unwrap(), 1_727_096_576);
        assert_eq!(rails(&mut firmware).unwrap(), "EXT5V_V volt(24)=5.1V");
    }

    #[test]
    fn what_the_firmware_does_not_know_is_no_answer() {
        let mut firmware = Firmware::default();
        assert!(matches!(rails(&mut firmware), Err(Unanswered::Unknown)));
        assert!(matches!(ask(&mut firmware, 0x0003_ffff, [0]), Err(Unanswered::Unknown)));
        firmware.broken = true;
        assert!(throttled(&mut firmware).unwrap_err().to_string().starts_with(DEVICE));
    }
}
