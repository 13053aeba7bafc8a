//! Page size and address bits, as a process meets them: `/proc/self/auxv` and `/proc/self/maps`.
//!
//! The stack lies directly below the top of the address space (less at most 16 GiB of randomness), so its
//! end tells the bits without trying an address.

use super::Fact;
use super::kernel_config::KernelConfig;
use crate::host::{Host, Unreadable};

/// What a process gets.
#[derive(Debug)]
pub struct AddressSpace {
    /// Bytes in a page.
    pub page_size: Fact<u64>,
    /// Bits of the highest address a process gets without asking for more.
    pub bits: Fact<u32>,
}

const AUXV: &str = "/proc/self/auxv";
const MAPS: &str = "/proc/self/maps";

pub(super) fn read(host: &Host, config: &Fact<KernelConfig>) -> AddressSpace {
    let page_size = host
        .bytes(AUXV)
        .and_then(|bytes| page_size(&bytes).ok_or_else(|| Unreadable::malformed(AUXV, "an entry AT_PAGESZ")))
        .or_else(|unreadable| config.as_ref().ok().and_then(built_page_size).ok_or(unreadable));
    let bits = host
        .text(MAPS)
        .and_then(|maps| bits(&maps).ok_or_else(|| Unreadable::malformed(MAPS, "a line for [stack]")))
        .or_else(|unreadable| config.as_ref().ok().and_then(built_bits).ok_or(unreadable));
    AddressSpace { page_size, bits }
}

/// getauxval(3): pairs of 64-bit words, the first of which names the second; 6 is AT_PAGESZ.
fn page_size(auxv: &[u8]) -> Option<u64> {
    let (words, _) = auxv.as_chunks::<8>();
    let mut words = words.iter().map(|word| u64::from_ne_bytes(*word));
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        if name == 6 {
            return value.is_power_of_two().then_some(value);
        }
    }
    None
}

fn bits(maps: &str) -> Option<u32> {
    let stack = maps.lines().find(|line| line.ends_with("[stack]"))?;
    let (_, end) = stack.split_once(' ')?.0.split_once('-')?;
    let end = u64::from_str_radix(end, 16).ok()?;
    (end > 1).then(|| u64::BITS - (end - 1).leading_zeros())
}

fn built_page_size(config: &KernelConfig) -> Option<u64> {
    let built = [
        ("CONFIG_ARM64_4K_PAGES", 4096),
        ("CONFIG_ARM64_16K_PAGES", 16384),
        ("CONFIG_ARM64_64K_PAGES", 65536),
        ("CONFIG_X86_64", 4096),
    ];
    built.iter().find(|(option, _)| config.is_set(option)).map(|(_, size)| *size)
}

/// A kernel built for 52 bits gives 48 to a process that does not ask for more.
fn built_bits(config: &KernelConfig) -> Option<u32> {
    if config.is_set("CONFIG_X86_64") {
        return Some(47);
    }
    config.value("CONFIG_ARM64_VA_BITS")?.parse().ok().map(|bits: u32| bits.min(48))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_stack_tells_the_address_bits() {
        for (end, expected) in [
            ("7fd3c21000-7fd3c42000", 39),
            ("7fffe2d84000-7fffe2da5000", 47),
            ("ffffc3a5b000-ffffc3a7c000", 48),
        ] {
            let maps = format!(
                "5500000000-5500001000 r-xp 00000000 b3:02 1  /bin/cat\n\
                                {end} rw-p 00000000 00:00 0    [stack]\n"
            );
            assert_eq!(bits(&maps), Some(expected), "{end}");
        }
        for maps in ["", "[stack]", "x-y rw-p [stack]", "0-0 rw-p [stack]"] {
            assert_eq!(bits(maps), None, "{maps:?}");
        }
    }

    #[test]
    fn the_auxiliary_vector_tells_the_page_size() {
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        assert_eq!(page_size(&words(&[33, 1, 6, 16384, 0, 0])), Some(16384));
        assert_eq!(page_size(&words(&[33, 6, 0, 0])), None);
        assert_eq!(page_size(&words(&[6, 5])), None);
        assert_eq!(page_size(b"short"), None);
    }
}
