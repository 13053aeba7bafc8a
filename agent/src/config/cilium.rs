//! `[cilium]`: which Cilium the first server installs, and what its owner wants of it.

use serde::Deserialize;

/// Cilium as the owner wants it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cilium {
    /// The version of its chart, such as "1.17.18".
    pub version: Version,
    /// Values for the chart, which win over what bramble would set. Default: none.
    pub values: toml::Table,
}

impl Default for Cilium {
    fn default() -> Cilium {
        let version = Version { text: "1.17.18".into(), minor: (1, 17) };
        Cilium { version, values: toml::Table::new() }
    }
}

/// A version of the chart.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Version {
    /// As written, without a leading v.
    pub text: String,
    /// 1.17 as (1, 17).
    pub minor: (u32, u32),
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Version, String> {
        let plain = text.strip_prefix('v').unwrap_or(&text);
        let numbers: Option<Vec<u32>> = plain.split('.').map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some([major, minor, _]) => Ok(Version { text: plain.into(), minor: (*major, *minor) }),
            _ => Err(format!("\"{text}\" is no version of a chart such as 1.17.18")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_three_numbers() {
        let version = Version::try_from("v1.19.6".to_owned()).unwrap();
        assert_eq!((version.text.as_str(), version.minor), ("1.19.6", (1, 19)));
        for text in ["1.19", "latest", "1.19.x", "", "1.2.3.4"] {
            assert!(Version::try_from(text.to_owned()).unwrap_err().contains("1.17.18"), "{text}");
        }
    }
}
