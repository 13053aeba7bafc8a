//! The options the running kernel was built with: `/proc/config.gz`, else `/boot/config-<release>`.
//!
//! On Raspberry Pi kernels the first is a module (`configs`) that nothing loads; the second is there.

use std::collections::HashMap;
use std::io::Read;

use flate2::read::GzDecoder;

use super::{Fact, kernel};
use crate::host::{Host, LARGEST, Unreadable};

/// A kernel's options; one that is not in it is switched off or unknown to that kernel.
#[derive(Debug, Default)]
pub struct KernelConfig {
    /// Where it was read.
    pub path: String,
    set: HashMap<Box<str>, Box<str>>,
}

impl KernelConfig {
    /// The value of an option: "y", "m", a number or a text without its quotes.
    pub fn value(&self, option: &str) -> Option<&str> {
        self.set.get(option).map(|value| &**value)
    }

    /// Whether an option is "y" or "m".
    pub fn is_set(&self, option: &str) -> bool {
        matches!(self.value(option), Some("y" | "m"))
    }

    fn parse(path: &str, text: &str) -> Option<KernelConfig> {
        let set: HashMap<_, _> = text
            .lines()
            .filter(|line| line.starts_with("CONFIG_"))
            .filter_map(|line| line.split_once('='))
            .map(|(option, value)| (option.into(), value.trim_end().trim_matches('"').into()))
            .collect();
        // Every kernel sets hundreds; a file that sets nothing is another file.
        (!set.is_empty()).then(|| KernelConfig { path: path.into(), set })
    }
}

pub(super) fn read(host: &Host) -> Fact<KernelConfig> {
    let running = "/proc/config.gz";
    if let Ok(packed) = host.bytes(running) {
        return parse(running, &unpack(running, &packed)?);
    }
    let path = format!("/boot/config-{}", kernel::release(host)?);
    parse(&path, &host.text(&path)?)
}

fn parse(path: &str, text: &str) -> Fact<KernelConfig> {
    KernelConfig::parse(path, text).ok_or_else(|| Unreadable::malformed(path, "a kernel configuration"))
}

/// A small file may unpack to a huge one, so the same limit holds after unpacking.
fn unpack(path: &str, packed: &[u8]) -> Fact<String> {
    let mut text = String::new();
    match GzDecoder::new(packed).take(LARGEST).read_to_string(&mut text) {
        Ok(length) if (length as u64) < LARGEST => Ok(text),
        _ => Err(Unreadable::malformed(path, "a kernel configuration packed by gzip")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: &str = "#\n# Linux/arm64 6.12.49\n#\nCONFIG_BPF=y\nCONFIG_VXLAN=m\n# CONFIG_GENEVE is not set\n\
                        CONFIG_ARM64_VA_BITS=39\nCONFIG_LSM=\"\"\nCONFIG_LOCALVERSION=\"-v8\"\n";

    #[test]
    fn a_configuration_gives_each_options_value() {
        let config = KernelConfig::parse("x", TEXT).unwrap();
        assert_eq!(config.value("CONFIG_ARM64_VA_BITS"), Some("39"));
        assert_eq!(config.value("CONFIG_LOCALVERSION"), Some("-v8"));
        assert_eq!(config.value("CONFIG_LSM"), Some(""));
        assert!(config.is_set("CONFIG_BPF") && config.is_set("CONFIG_VXLAN"));
        assert!(!config.is_set("CONFIG_GENEVE") && !config.is_set("CONFIG_LSM"));
    }

    #[test]
    fn a_file_that_is_no_configuration_is_refused() {
        for text in ["", "hello", "# CONFIG_BPF is not set\n"] {
            assert!(KernelConfig::parse("x", text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_packed_configuration_is_unpacked_within_limits() {
        let pack = |content: &[u8]| {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(content).unwrap();
            packer.finish().unwrap()
        };
        assert_eq!(unpack("x", &pack(TEXT.as_bytes())).unwrap(), TEXT);
        let bomb = pack(&vec![b' '; LARGEST as usize + 1]);
        assert!(bomb.len() < 100_000);
        assert!(unpack("x", &bomb).is_err());
        assert!(unpack("x", b"not packed").is_err());
    }
}
