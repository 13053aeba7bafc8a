//! `cargo xtask ebpf`: builds the eBPF objects that `ebpf/prebuilt` holds, or checks that they can be built again.
//!
//! The objects are committed, so that `cargo build` needs stable Rust only. They are built with Debian's packages:
//! rustc-web with its prebuilt `core` for eBPF makes one bitcode module of each program, llc makes an eBPF object of
//! it. The same sources and the same versions give the same bytes, in whatever directory.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::root;
use crate::setup::{self, Purpose};

const TARGET: &str = "bpfel-unknown-none";
const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const LLVM: &str = "/usr/lib/llvm-22/bin";
/// Could not tell, as in bramble's own exit codes.
const COULD_NOT_TELL: u8 = 3;

/// Builds the eBPF objects into ebpf/prebuilt.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Build into target/ and compare with ebpf/prebuilt. Exit code 1: they differ; 3: built with other versions than
    /// the committed ones, so it could not be told.
    #[arg(long)]
    check: bool,
    /// Print one JSON object last.
    #[arg(long)]
    json: bool,
}

/// `ebpf/prebuilt/manifest.json`: what the objects were built from, and with what.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// By file name.
    objects: BTreeMap<String, Object>,
    /// SHA-256 over the eBPF sources, see [`hash_sources`].
    sources: String,
    #[serde(flatten)]
    toolchain: Toolchain,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Object {
    sha256: String,
    /// Bytes.
    size: usize,
}

/// The versions that decide over an object's bytes, as the programs say them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Toolchain {
    rustc: String,
    llvm: String,
}

/// What is printed for `--json`.
#[derive(Serialize)]
struct Outcome<'a> {
    verb: &'static str,
    check: bool,
    /// Whether the committed objects are what was built just now; null when other versions built them.
    identical: Option<bool>,
    /// Files that are not as built just now.
    differing: Vec<&'a str>,
    #[serde(flatten)]
    built: &'a Manifest,
    seconds: f64,
}

/// Runs the verb.
///
/// # Errors
///
/// When the toolchain cannot be had or a build step fails.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let started = Instant::now();
    setup::ensure(&[Purpose::Ebpf])?;
    let built = build()?;
    let manifest = describe_all(&built, hash_sources(root())?)?;
    let (differing, identical) = if arguments.check {
        let committed = read_manifest(root())?;
        let differing = differing(root(), &manifest)?;
        let stale = committed.sources != manifest.sources || !self::differing(root(), &committed)?.is_empty();
        let known = differing.is_empty() || stale || committed.toolchain == manifest.toolchain;
        if !known {
            println!(
                "could not tell: the committed objects were built with {} and {}, these with {} and {}; \
                 install those versions, or build anew: cargo xtask ebpf",
                committed.toolchain.rustc,
                committed.toolchain.llvm,
                manifest.toolchain.rustc,
                manifest.toolchain.llvm
            );
        }
        let identical = known.then_some(differing.is_empty());
        (differing, identical)
    } else {
        write(&built, &manifest)?;
        (Vec::new(), Some(true))
    };
    for (file, object) in &manifest.objects {
        let verdict = if differing.contains(file) { "differs" } else { "as built" };
        println!("ebpf/prebuilt/{file}  {} bytes  {}  {verdict}", object.size, &object.sha256[..12]);
    }
    if identical == Some(false) {
        println!(
            "ebpf/prebuilt is not what the sources build: {}; next: cargo xtask ebpf",
            differing.join(", ")
        );
    }
    if arguments.json {
        let outcome = Outcome {
            verb: "ebpf",
            check: arguments.check,
            identical,
            differing: differing.iter().map(String::as_str).collect(),
            built: &manifest,
            seconds: started.elapsed().as_secs_f64(),
        };
        println!("{}", serde_json::to_string(&outcome)?);
    }
    Ok(match identical {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => ExitCode::from(COULD_NOT_TELL),
    })
}

/// Builds the objects anew when the sources are not those of the manifest; costs a few hashes otherwise.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn refresh() -> Result<()> {
    let sources = hash_sources(root())?;
    if read_manifest(root()).is_ok_and(|committed| committed.sources == sources) {
        return Ok(());
    }
    eprintln!("ebpf/prebuilt is older than the sources; building the objects");
    setup::ensure(&[Purpose::Ebpf])?;
    let built = build()?;
    write(&built, &describe_all(&built, sources)?)
}

fn prebuilt(root: &Path) -> PathBuf {
    root.join("ebpf/prebuilt")
}

fn read_manifest(root: &Path) -> Result<Manifest> {
    let path = prebuilt(root).join("manifest.json");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}; next: cargo xtask ebpf", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("cannot parse {}; next: cargo xtask ebpf", path.display()))
}

fn describe_all(built: &BTreeMap<String, Vec<u8>>, sources: String) -> Result<Manifest> {
    let objects = built.iter().map(|(file, bytes)| (file.clone(), describe(bytes))).collect();
    Ok(Manifest { objects, sources, toolchain: toolchain()? })
}

fn describe(bytes: &[u8]) -> Object {
    Object { sha256: hex(Sha256::digest(bytes).as_slice()), size: bytes.len() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names of the files in `ebpf/prebuilt` that are not what `manifest` says, the manifest's own statements included.
fn differing(root: &Path, manifest: &Manifest) -> Result<Vec<String>> {
    let mut files: BTreeSet<String> = committed_objects(root)?.into_iter().collect();
    files.extend(manifest.objects.keys().cloned());
    let mut differing = Vec::new();
    for file in files {
        let found = fs::read(prebuilt(root).join(&file)).ok().map(|bytes| describe(&bytes));
        if found.as_ref() != manifest.objects.get(&file) {
            differing.push(file);
        }
    }
    let committed = read_manifest(root)?;
    if committed.objects != manifest.objects || committed.sources != manifest.sources {
        differing.push("manifest.json".to_owned());
    }
    Ok(differing)
}

fn committed_objects(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(prebuilt(root)).context("cannot list ebpf/prebuilt")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".bpf.o") {
            names.push(name);
        }
    }
    Ok(names)
}

fn write(built: &BTreeMap<String, Vec<u8>>, manifest: &Manifest) -> Result<()> {
    let directory = prebuilt(root());
    fs::create_dir_all(&directory)?;
    for stale in committed_objects(root())?.iter().filter(|name| !built.contains_key(*name)) {
        fs::remove_file(directory.join(stale))?;
    }
    for (file, bytes) in built {
        fs::write(directory.join(file), bytes)
            .with_context(|| format!("cannot write ebpf/prebuilt/{file}"))?;
    }
    let text = serde_json::to_string_pretty(manifest)? + "\n";
    fs::write(directory.join("manifest.json"), text).context("cannot write ebpf/prebuilt/manifest.json")
}

// The sources

/// SHA-256 over all that the objects are made of: the files of `ebpf` and `ebpf/records`, with line endings as on
/// Unix, and name, version and checksum of every crate that `ebpf` brings in.
fn hash_sources(root: &Path) -> Result<String> {
    let mut files = vec![root.join("ebpf/Cargo.toml"), root.join("ebpf/records/Cargo.toml")];
    for directory in ["ebpf/src", "ebpf/src/bin", "ebpf/records/src"] {
        for entry in fs::read_dir(root.join(directory)).with_context(|| format!("cannot list {directory}"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    let mut add = |name: &str, content: &[u8]| {
        hash.update(format!("{name} {}\n", content.len()));
        hash.update(content);
    };
    for path in &files {
        let mut content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        content.retain(|byte| *byte != b'\r');
        add(&path.strip_prefix(root)?.to_string_lossy(), &content);
    }
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    for line in locked_crates(&lock)? {
        add("Cargo.lock", line.as_bytes());
    }
    Ok(hex(hash.finalize().as_slice()))
}

/// The crates that `ebpf` brings in: "name version checksum", sorted. `ebpf-records` brings in none of its own: what
/// it depends on is for user space.
fn locked_crates(lock: &str) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        checksum: Option<String>,
        #[serde(default)]
        dependencies: Vec<String>,
    }
    let lock: Lock = toml::from_str(lock).context("cannot parse Cargo.lock")?;
    let find = |dependency: &str| {
        // "name", or "name version" where the name alone is ambiguous.
        let mut words = dependency.split(' ');
        let (name, version) = (words.next(), words.next());
        lock.package
            .iter()
            .find(|package| {
                Some(&*package.name) == name && version.is_none_or(|wanted| package.version == wanted)
            })
            .with_context(|| format!("Cargo.lock names {dependency} without describing it"))
    };
    let mut crates = BTreeSet::new();
    let mut left = find("ebpf")?.dependencies.clone();
    while let Some(name) = left.pop() {
        let package = find(&name)?;
        let Some(checksum) = &package.checksum else { continue };
        if crates.insert(format!("{} {} {checksum}", package.name, package.version)) {
            left.extend(package.dependencies.iter().cloned());
        }
    }
    Ok(crates)
}

// The build

fn toolchain() -> Result<Toolchain> {
    let line = |program: &str, argument: &str, containing: &str| -> Result<String> {
        let output = Command::new(program)
            .arg(argument)
            .output()
            .with_context(|| format!("cannot start {program}; next: cargo xtask setup"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find(|line| line.contains(containing));
        Ok(line.with_context(|| format!("{program} {argument} does not tell its version"))?.trim().to_owned())
    };
    Ok(Toolchain {
        rustc: line(RUSTC, "--version", "rustc")?,
        llvm: line(&format!("{LLVM}/llc"), "--version", "version")?,
    })
}

/// Builds every program of `ebpf/src/bin`; object files by name.
fn build() -> Result<BTreeMap<String, Vec<u8>>> {
    let mut objects = BTreeMap::new();
    for entry in fs::read_dir(root().join("ebpf/src/bin")).context("cannot list ebpf/src/bin")? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        objects.insert(
            format!("{name}.bpf.o"),
            build_one(name).with_context(|| format!("cannot build {name}"))?,
        );
    }
    Ok(objects)
}

fn build_one(name: &str) -> Result<Vec<u8>> {
    let directory = root().canonicalize()?.join("target/ebpf");
    fs::create_dir_all(&directory)?;
    let [bitcode, full, stripped] =
        ["bc", "full.o", "bpf.o"].map(|end| directory.join(format!("{name}.{end}")));

    let mut emit = OsString::from("--emit=obj=");
    emit.push(&bitcode);
    let mut compile = clean_cargo(&directory)?;
    compile
        .args(["rustc", "--quiet", "--locked", "--package", "ebpf", "--bin", name])
        .args(["--release", "--target", TARGET, "--"])
        .arg(emit)
        // Nothing to link: after fat LTO the bitcode is one module.
        .arg("-Clinker=/bin/true");
    succeed(compile)?;

    let mut generate = Command::new(format!("{LLVM}/llc"));
    // v3 runs on every kernel since 5.12. Headers lie unaligned behind 14 bytes of Ethernet, and both of our
    // architectures read them so at full speed.
    generate
        .args([
            "-mtriple=bpfel",
            "-mcpu=v3",
            "-mattr=+allows-misaligned-mem-access",
            "-O2",
            "-filetype=obj",
            "-o",
        ])
        .args([&full, &bitcode]);
    succeed(generate)?;

    let mut strip = Command::new(format!("{LLVM}/llvm-objcopy"));
    // DWARF goes; .BTF and .BTF.ext stay, and let the verifier quote the source line it refuses.
    strip.arg("--strip-debug").args([&full, &stripped]);
    succeed(strip)?;

    let mut object = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    make_btf_names_valid(&mut object)?;
    Ok(object)
}

/// Debian's cargo with everything fixed that could change the objects.
fn clean_cargo(target_directory: &Path) -> Result<Command> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    let mut flags = OsString::new();
    let mut add = |flag: &str| {
        if !flags.is_empty() {
            flags.push("\x1f");
        }
        flags.push(flag);
    };
    // The programs touch no registers, so one object serves every architecture; only file names would differ.
    add("--cfg=bpf_target_arch=\"aarch64\"");
    add(&format!("--remap-path-prefix={}=/bramble", root().canonicalize()?.display()));
    // The directory of a registry carries a hash of its address.
    for registry in fs::read_dir(home.join("registry/src")).into_iter().flatten() {
        add(&format!("--remap-path-prefix={}=/crates", registry?.path().display()));
    }
    let mut cargo = Command::new(CARGO);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let network = ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"];
        let ours = name.starts_with("CARGO") || name.starts_with("RUST");
        if ours && name != "CARGO_HOME" && !network.iter().any(|prefix| name.starts_with(prefix)) {
            cargo.env_remove(name);
        }
    }
    cargo
        .current_dir(root())
        .env("PATH", "/usr/bin:/bin")
        .env("RUSTC", RUSTC)
        .env("RUSTC_WRAPPER", "")
        // Inline assembly for eBPF is not stable yet; these two crates use it.
        .env("RUSTC_BOOTSTRAP", "aya_ebpf,ebpf")
        .env("CARGO_TARGET_DIR", target_directory)
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    let profile = [
        ("OPT_LEVEL", "3"),
        ("DEBUG", "2"),
        ("STRIP", "none"),
        ("LTO", "fat"),
        ("CODEGEN_UNITS", "1"),
        ("PANIC", "abort"),
        ("OVERFLOW_CHECKS", "false"),
        ("DEBUG_ASSERTIONS", "false"),
    ];
    cargo.envs(profile.map(|(key, value)| (format!("CARGO_PROFILE_RELEASE_{key}"), value)));
    Ok(cargo)
}

fn succeed(mut command: Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .with_context(|| format!("cannot start {program}; next: cargo xtask setup"))?;
    if !status.success() {
        bail!("{program} failed (its reason stands above)");
    }
    Ok(())
}

// .BTF

/// Replaces what the kernel does not accept in names of types, such as `HashMap<u32, Peer>`, by `_`, in place, and
/// says how many characters that were. Otherwise `BPF_BTF_LOAD` answers EINVAL.
/// Follows Documentation/bpf/btf.rst.
fn make_btf_names_valid(object: &mut [u8]) -> Result<usize> {
    let btf = section(object, ".BTF")?.context("object has no .BTF")?;
    let btf = object.get_mut(btf).context("object is cut short")?;
    let header = |at: usize| u32_at(btf, at).map(|value| value as usize);
    // magic u16, version u8, flags u8, then: header length, types' offset and length, strings' offset and length
    let (header_length, types, types_length, strings) = (header(4)?, header(8)?, header(12)?, header(16)?);
    let (mut at, end) = (header_length + types, header_length + types + types_length);
    let mut replaced = 0;
    while at < end {
        let (name, info) = (u32_at(btf, at)? as usize, u32_at(btf, at + 4)?);
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        // struct, union, enum, forward, typedef, func, enum64
        if name != 0 && matches!(kind, 4..=8 | 12 | 19) {
            let start = header_length + strings + name;
            let name = btf.get_mut(start..).context(".BTF is cut short")?;
            for byte in name.iter_mut().take_while(|byte| **byte != 0) {
                if !byte.is_ascii_alphanumeric() && !matches!(*byte, b'_' | b'.') {
                    *byte = b'_';
                    replaced += 1;
                }
            }
        }
        at += 12
            + match kind {
                1 | 14 | 17 => 4,                // int, var, decl_tag
                3 => 12,                         // array
                4 | 5 | 15 | 19 => 12 * members, // struct, union, datasec, enum64
                6 | 13 => 8 * members,           // enum, func_proto
                _ => 0,
            };
    }
    Ok(replaced)
}

/// Where the section of this name lies in a little-endian ELF64 file.
fn section(elf: &[u8], wanted: &str) -> Result<Option<std::ops::Range<usize>>> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not a little-endian ELF64 file");
    let (table, count, names) = (u64_at(elf, 0x28)?, u16_at(elf, 0x3c)?, u16_at(elf, 0x3e)?);
    let header = |index: usize| table + 64 * index;
    let names = u64_at(elf, header(names) + 24)?;
    for index in 0..count {
        let name = elf.get(names + u32_at(elf, header(index))? as usize..).context("object is cut short")?;
        if name.split(|byte| *byte == 0).next() == Some(wanted.as_bytes()) {
            let offset = u64_at(elf, header(index) + 24)?;
            return Ok(Some(offset..offset + u64_at(elf, header(index) + 32)?));
        }
    }
    Ok(None)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let found = bytes.get(at..at + N).context("object is cut short")?;
    Ok(found.try_into()?)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<usize> {
    Ok(u16::from_le_bytes(bytes_at(bytes, at)?).into())
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(bytes_at(bytes, at)?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<usize> {
    Ok(usize::try_from(u64::from_le_bytes(bytes_at(bytes, at)?))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prebuilt_objects_are_those_of_the_manifest() {
        let manifest = read_manifest(root()).unwrap();
        let differing = differing(root(), &manifest).unwrap();
        assert!(differing.is_empty(), "ebpf/prebuilt: {differing:?} differ; run `cargo xtask ebpf`");
    }

    #[test]
    fn the_prebuilt_objects_come_from_these_sources() {
        let manifest = read_manifest(root()).unwrap();
        let sources = hash_sources(root()).unwrap();
        assert_eq!(manifest.sources, sources, "the eBPF sources have changed; run `cargo xtask ebpf`");
        let programs: BTreeSet<String> = fs::read_dir(root().join("ebpf/src/bin"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().replace(".rs", ".bpf.o"))
            .collect();
        assert_eq!(programs, manifest.objects.keys().cloned().collect(), "run `cargo xtask ebpf`");
    }

    #[test]
    fn names_of_generic_types_are_made_valid() {
        let good = fs::read(prebuilt(root()).join("mesh.bpf.o")).unwrap();
        let mut object = good.clone();
        assert_eq!(make_btf_names_valid(&mut object).unwrap(), 0);
        let name =
            b"HashMap_u32__ebpf_records::mesh::Peer_".map(|byte| if byte == b':' { b'_' } else { byte });
        let at = object.windows(name.len()).position(|window| window == name).unwrap();
        object[at + 7] = b'<';
        assert_eq!(make_btf_names_valid(&mut object).unwrap(), 1);
        assert_eq!(object, good);
    }

    #[test]
    fn an_object_that_is_cut_short_is_an_error() {
        let good = fs::read(prebuilt(root()).join("mesh.bpf.o")).unwrap();
        for length in [0, 5, 64, 1000, good.len() / 2] {
            assert!(make_btf_names_valid(&mut good[..length].to_vec()).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn only_what_the_programs_are_built_from_is_locked() {
        let crates = locked_crates(&fs::read_to_string(root().join("Cargo.lock")).unwrap()).unwrap();
        let has = |name: &str| crates.iter().any(|line| line.starts_with(&format!("{name} ")));
        assert!(has("aya-ebpf") && has("aya-ebpf-bindings") && has("aya-ebpf-macros"));
        assert!(!has("aya") && !has("ebpf-records"));
    }
}
