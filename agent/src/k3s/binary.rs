//! Where the program and its images come from, and that they are what they should be: by hash always, and for the
//! program by the machine that it was built for. Nothing is run, and nothing is piped into a shell.
//!
//! The names are those of K3s' releases: `k3s-arm64`, `sha256sum-arm64.txt`, `k3s-airgap-images-arm64.tar.zst`.

use std::io::Read;
use std::time::{Duration, Instant};

use crate::config::k3s::{K3s, Source, Version, is_sha256};
use crate::host::Host;
use crate::host::http::{Client, Limits, Request, Trouble, Trust, Url};
use crate::host::large::Partial;
use crate::host::write::NotDone;
use crate::k3s::path;

/// A file to put on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Where it is to stand.
    pub path: String,
    /// Its permissions.
    pub mode: u32,
    /// Where it is.
    pub from: From,
    /// What it must hash to.
    pub sha256: String,
    /// The machine that it must be built for, by ELF's number; `None` for what is no program.
    machine: Option<Machine>,
}

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// On this machine.
    File(String),
    /// Elsewhere.
    Url(Url),
}

/// A kind of machine: its name in releases, and its number in ELF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    name: &'static str,
    program: &'static str,
    elf: u16,
}

/// Those that K3s is released for and bramble is built for. `e_machine` of elf(5).
const MACHINES: [(&str, Machine); 2] = [
    ("aarch64", Machine { name: "arm64", program: "k3s-arm64", elf: 183 }),
    ("x86_64", Machine { name: "amd64", program: "k3s", elf: 62 }),
];

/// No program of K3s is as large, and no set of its images.
const LARGEST: [u64; 2] = [512 << 20, 4 << 30];
/// Each may lead to another, and a circle ends here.
const REDIRECTS: usize = 5;
/// How long a file of some hundred bytes may take.
const SMALL: Duration = Duration::from_secs(60);
/// How often a connection that was cut off is begun anew while pieces still come.
const RETRIES: usize = 8;
/// The least that comes of a download in a time, over all its connections: a modem of old is as quick. A mirror that
/// drips would keep a join for ever.
const LEAST: (u64, Duration) = (2 << 20, Duration::from_secs(300));

impl Machine {
    /// The one this runs on.
    pub fn here() -> Option<Machine> {
        MACHINES.iter().find(|(arch, _)| *arch == std::env::consts::ARCH).map(|(_, machine)| *machine)
    }

    fn hashes(self) -> String {
        format!("sha256sum-{}.txt", self.name)
    }

    fn images(self) -> [String; 3] {
        ["tar.zst", "tar.gz", "tar"].map(|kind| format!("k3s-airgap-images-{}.{kind}", self.name))
    }
}

/// Finds the program, the images beside it, and what they must hash to.
pub async fn find(
    host: &Host,
    k3s: &K3s,
    version: &Version,
    machine: Machine,
) -> Result<Vec<Wanted>, NotDone> {
    provable(k3s)?;
    match &k3s.source {
        Source::Path(source) => local(host, k3s, source, machine),
        Source::Mirror(mirror) => {
            // A plus in a URL is a blank to some servers.
            let release = format!("{}/{}", mirror.path().trim_end_matches('/'), version).replace('+', "%2B");
            let at = |name: &str| mirror.at(&format!("{release}/{name}"));
            let sha256 = match &k3s.sha256 {
                Some(hash) => hash.clone(),
                None => {
                    let url = at(&machine.hashes());
                    let text = fetch_small(&url, SMALL).await?;
                    hash_of(&text, machine.program)
                        .ok_or_else(|| no_hash(&url.to_string(), machine.program))?
                }
            };
            Ok(vec![program(From::Url(at(machine.program)), sha256, machine)])
        }
    }
}

/// Whether what is written says by what hash the program is known, or whom to believe about that.
pub fn provable(k3s: &K3s) -> Result<(), NotDone> {
    match (&k3s.source, &k3s.sha256) {
        (Source::Mirror(mirror), None) if !mirror.is_https() => Err(NotDone::new(
            "finding",
            mirror.to_string(),
            "over http anybody on the way could change the program and its file of hashes alike",
            "write the program's hash into k3s.sha256, or ask an https mirror",
        )),
        _ => Ok(()),
    }
}

fn program(from: From, sha256: String, machine: Machine) -> Wanted {
    Wanted { path: path::BINARY.into(), mode: 0o755, from, sha256, machine: Some(machine) }
}

fn local(host: &Host, k3s: &K3s, source: &str, machine: Machine) -> Result<Vec<Wanted>, NotDone> {
    let names = host.list(source).ok();
    let (directory, name) = match &names {
        Some(_) => (source.trim_end_matches('/'), machine.program),
        None => source.rsplit_once('/').unwrap_or(("", source)),
    };
    let file = format!("{directory}/{name}");
    if host.present(&file) != Ok(true) {
        let next =
            "write into k3s.source where K3s' program lies, or the directory that holds a release of it";
        return Err(NotDone::new("finding", file, "it is not there", next));
    }
    let listed = format!("{directory}/{}", machine.hashes());
    let hashes = match host.text(&listed) {
        Err(absent) if absent.is_absence() => None,
        hashes => Some(hashes.map_err(NotDone::from)?),
    };
    let hash = |name: &str| hashes.as_deref().and_then(|text| hash_of(text, name));
    let sha256 = k3s.sha256.clone().or_else(|| hash(name)).ok_or_else(|| no_hash(&listed, name))?;
    let mut wanted = vec![program(From::File(file), sha256, machine)];
    // Of the three forms of one set of images one is enough.
    let there = |image: &String| names.as_ref().is_some_and(|names| names.contains(image));
    if let Some(image) = machine.images().into_iter().find(there) {
        let sha256 = hash(&image).ok_or_else(|| no_hash(&listed, &image))?;
        wanted.push(Wanted {
            path: format!("{}/{image}", path::IMAGES),
            mode: 0o644,
            from: From::File(format!("{directory}/{image}")),
            sha256,
            machine: None,
        });
    }
    Ok(wanted)
}

/// The hash that a file of `sha256sum` gives for a name.
fn hash_of(hashes: &str, name: &str) -> Option<String> {
    hashes.lines().find_map(|line| {
        let (hash, file) = line.split_once(char::is_whitespace)?;
        let file = file.trim_start().trim_start_matches('*').trim_end();
        (file == name && is_sha256(hash)).then(|| hash.to_owned())
    })
}

fn no_hash(listed: &str, name: &str) -> NotDone {
    let why = format!("it gives no hash for {name}, and nothing is installed without one");
    NotDone::new("reading", listed, why, "put the release's file of hashes there, or write k3s.sha256")
}

impl Wanted {
    /// Whether it stands there already.
    pub fn is_there(&self, host: &Host) -> bool {
        host.sha256(&self.path).is_ok_and(|hash| hash == self.sha256)
    }

    /// Its name for people.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Fills a partial file with it, from where an earlier run was cut off, and proves it. `tell` hears how many bytes
    /// there are, and of how many.
    pub async fn fetch(
        &self,
        host: &Host,
        partial: &mut Partial,
        tell: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<(), NotDone> {
        if partial.length() == 0 || partial.sha256() != self.sha256 {
            match &self.from {
                From::File(file) => copy(host, file, partial, self.largest(), tell)?,
                From::Url(url) => download(url, partial, self.largest(), Pace::of(LEAST), tell).await?,
            }
        }
        let seen = partial.sha256();
        if seen != self.sha256 {
            partial.restart()?;
            let why = format!(
                "it hashes to {seen}, and {} is asked for: it was changed or broken on the way",
                self.sha256
            );
            return Err(self.not_done(why, "look at where it comes from, then join again"));
        }
        let Some(machine) = self.machine else { return Ok(()) };
        built_for(&partial.head(20)?, machine).map_err(|why| {
            self.not_done(
                why,
                format!("give {} for this machine: the {} of a release", self.name(), machine.program),
            )
        })
    }

    fn largest(&self) -> u64 {
        LARGEST[usize::from(self.machine.is_none())]
    }

    fn not_done(&self, why: impl Into<String>, next: impl Into<String>) -> NotDone {
        let from = match &self.from {
            From::File(file) => file.clone(),
            From::Url(url) => url.to_string(),
        };
        NotDone::new("taking", from, why, next)
    }
}

/// Whether the head of a file is that of a program for a machine; elf(5).
fn built_for(head: &[u8], machine: Machine) -> Result<(), String> {
    let [0x7f, b'E', b'L', b'F', class, order, ..] = head else {
        return Err("it is no program (ELF)".into());
    };
    let Some(&[low, high]) = head.get(18..20).and_then(|bytes| bytes.first_chunk::<2>()) else {
        return Err("it is cut off in its head".into());
    };
    let number = u16::from_le_bytes([low, high]);
    match (class, order, number) {
        (2, 1, number) if number == machine.elf => Ok(()),
        _ => {
            let of = match number {
                40 => "32-bit ARM".into(),
                62 => "amd64".into(),
                183 => "arm64".into(),
                243 => "RISC-V".into(),
                number => format!("another machine (ELF {number})"),
            };
            Err(format!("it was built for {of}, and this machine is {}", machine.name))
        }
    }
}

fn copy(
    host: &Host,
    file: &str,
    partial: &mut Partial,
    largest: u64,
    tell: &mut dyn FnMut(u64, Option<u64>),
) -> Result<(), NotDone> {
    // It is here, and quickly read anew.
    partial.restart()?;
    let all = host.length(file).map_err(NotDone::from)?;
    if all > largest {
        return Err(too_large(file, largest));
    }
    let mut reader = host.reader(file).map_err(NotDone::from)?;
    let mut piece = vec![0; 1 << 16];
    loop {
        let length = reader.read(&mut piece).map_err(|error| {
            NotDone::new(
                "reading",
                file,
                error.to_string(),
                "look at the disk that holds it, then join again",
            )
        })?;
        if length == 0 {
            return Ok(());
        }
        partial.add(&piece[..length])?;
        tell(partial.length(), Some(all));
    }
}

fn too_large(from: &str, largest: u64) -> NotDone {
    let why = format!("it is larger than {} MiB, and no file of a release is", largest >> 20);
    NotDone::new("taking", from, why, "look at where it comes from, then join again")
}

/// Whether a download is worth waiting for.
struct Pace {
    least: u64,
    within: Duration,
    /// When it was quick enough last, and what has come since.
    since: Instant,
    come: u64,
}

impl Pace {
    fn of((least, within): (u64, Duration)) -> Pace {
        Pace { least, within, since: Instant::now(), come: 0 }
    }

    /// Counts what has come; refuses what is too slow.
    fn count(&mut self, url: &Url, bytes: usize, partial: &Partial) -> Result<(), NotDone> {
        self.come += bytes as u64;
        if self.come >= self.least {
            (self.since, self.come) = (Instant::now(), 0);
        }
        if self.since.elapsed() < self.within {
            return Ok(());
        }
        let (within, come, have) = (self.within.as_secs(), self.come >> 10, partial.length() >> 10);
        let why = format!("too slow: {come} KiB came within {within} s; {have} KiB of it are here");
        let next = "join again, which goes on from there, or name another mirror or a file as k3s.source";
        Err(NotDone::new("downloading", url.to_string(), why, next))
    }
}

async fn download(
    url: &Url,
    partial: &mut Partial,
    largest: u64,
    mut pace: Pace,
    tell: &mut dyn FnMut(u64, Option<u64>),
) -> Result<(), NotDone> {
    let mut retries = 0;
    loop {
        let before = partial.length();
        let trouble = match download_once(url, partial, largest, &mut pace, tell).await? {
            Ok(()) => return Ok(()),
            Err(trouble) => trouble,
        };
        retries = if partial.length() > before { 0 } else { retries + 1 };
        let is_passing = matches!(trouble, Trouble::Cut(_) | Trouble::TimeOut { .. });
        if !is_passing || before == 0 && partial.length() == 0 || retries == RETRIES {
            let next = match &trouble {
                Trouble::Status { status: 404, .. } => {
                    "look at k3s.version and k3s.source: there is no such release"
                }
                _ => "join again when the network is well: it goes on where it was cut off",
            };
            return Err(NotDone::new("downloading", url.to_string(), trouble.to_string(), next));
        }
        pace.count(url, 0, partial)?;
        tokio::time::sleep(Duration::from_secs(1 << retries.min(4))).await;
    }
}

/// One connection. The outer failure is the disk's or the file's own, the inner one the way's.
async fn download_once(
    url: &Url,
    partial: &mut Partial,
    largest: u64,
    pace: &mut Pace,
    tell: &mut dyn FnMut(u64, Option<u64>),
) -> Result<Result<(), Trouble>, NotDone> {
    let from = partial.length();
    let mut answer = match follow(url, Some(from).filter(|from| *from > 0)).await {
        // There is nothing behind what was fetched: if the hash does not fit, it is begun anew.
        Err(Trouble::Status { status: 416, .. }) => return Ok(Ok(())),
        Err(trouble) => return Ok(Err(trouble)),
        Ok(answer) => answer,
    };
    if answer.status != 206 && from > 0 {
        partial.restart()?;
    }
    let length: Option<u64> = answer.header("content-length").and_then(|length| length.parse().ok());
    let all = length.map(|length| partial.length() + length);
    if all.is_some_and(|all| all > largest) {
        return Err(too_large(&url.to_string(), largest));
    }
    loop {
        match answer.next().await {
            Err(trouble) => return Ok(Err(trouble)),
            Ok(None) => return Ok(Ok(())),
            Ok(Some(piece)) => {
                if partial.length() + piece.len() as u64 > largest {
                    return Err(too_large(&url.to_string(), largest));
                }
                partial.add(&piece)?;
                tell(partial.length(), all);
                pace.count(url, piece.len(), partial)?;
            }
        }
    }
}

/// Asks for a file, from a byte on, and follows where it is sent; never from https to http.
async fn follow(url: &Url, from: Option<u64>) -> Result<crate::host::http::Answer, Trouble> {
    let (connect, answer) = (Duration::from_secs(10), Duration::from_secs(30));
    let limits = Limits { connect, answer, ..Limits::default() };
    let client = Client::new(Trust::System, None)?.within(limits);
    let mut url = url.clone();
    for _ in 0..=REDIRECTS {
        let mut request = Request::get(&url);
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        match client.open(request).await {
            Err(Trouble::Redirect { status, to }) => {
                let next = url.join(&to).ok().filter(|next| next.is_https() || !url.is_https());
                url = next.ok_or(Trouble::Redirect { status, to })?;
            }
            answer => return answer?.good().await,
        }
    }
    Err(Trouble::Other(format!("the server sends on and on, at last to {url}")))
}

async fn fetch_small(url: &Url, limit: Duration) -> Result<String, NotDone> {
    let read = async {
        let mut answer = follow(url, None).await?;
        let mut text = Vec::new();
        while let Some(piece) = answer.next().await? {
            text.extend_from_slice(&piece);
            if text.len() > 1 << 20 {
                return Err(Trouble::TooLarge(1 << 20));
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    // Pieces may come in time for ever.
    let late = |_| Err(Trouble::TimeOut { what: "the whole answer", after: limit });
    tokio::time::timeout(limit, read).await.unwrap_or_else(late).map_err(|trouble| {
        let next = "look at k3s.source and k3s.version, or write k3s.sha256 and take the program from a file";
        NotDone::new("reading", url.to_string(), trouble.to_string(), next)
    })
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the tests build trees and serve files")]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::path::PathBuf;

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::config::k3s::tests::checked;
    use crate::host::write::HostMut;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Tree {
            let dir = std::env::temp_dir().join(format!("bramble-binary-{}-{name}", std::process::id()));
            for below in ["usr/local/bin", "media"] {
                fs::create_dir_all(dir.join(below)).unwrap();
            }
            Tree(dir)
        }

        fn write(&self, path: &str, content: &[u8]) {
            fs::write(self.0.join(path), content).unwrap();
        }

        fn host(&self) -> HostMut {
            HostMut::tree(&self.0).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn arm64() -> Machine {
        MACHINES[0].1
    }

    /// The head of a program for a machine, and something behind it.
    fn elf(machine: u16) -> Vec<u8> {
        let mut program = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0];
        program.extend(machine.to_le_bytes());
        program.extend((0..100_000u32).flat_map(u32::to_le_bytes));
        program
    }

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn found(host: &HostMut, k3s: &str) -> Result<Vec<Wanted>, String> {
        let version = Version::parse("v1.35.2+k3s1").unwrap();
        let say = |failed: NotDone| format!("{failed}; {}", failed.next);
        block_on(find(host.host(), &checked(k3s), &version, arm64())).map_err(say)
    }

    fn fetched(host: &HostMut, wanted: &Wanted) -> Result<(), String> {
        let mut partial = host.partial(&wanted.path, &wanted.sha256).unwrap();
        let say = |failed: NotDone| format!("{failed}; {}", failed.next);
        block_on(wanted.fetch(host.host(), &mut partial, &mut |_, _| {})).map_err(say)?;
        partial.finish(wanted.mode).map_err(say)
    }

    #[test]
    fn a_directory_gives_program_and_images_by_its_hashes() {
        let tree = Tree::new("directory");
        let program = elf(183);
        tree.write("media/k3s-arm64", &program);
        tree.write("media/k3s-airgap-images-arm64.tar.gz", b"images");
        tree.write("media/k3s-airgap-images-arm64.tar", b"same");
        let hashes = format!(
            "{}  k3s-arm64\n{} *k3s-airgap-images-arm64.tar.gz\n",
            sha256(&program),
            sha256(b"images")
        );
        tree.write("media/sha256sum-arm64.txt", hashes.as_bytes());
        let host = tree.host();
        let wanted = found(&host, "source = \"/media\"").unwrap();
        let places: Vec<&str> = wanted.iter().map(|one| one.path.as_str()).collect();
        assert_eq!(
            places,
            ["/usr/local/bin/k3s", "/var/lib/rancher/k3s/agent/images/k3s-airgap-images-arm64.tar.gz"]
        );
        assert!(!wanted[0].is_there(host.host()));
        fetched(&host, &wanted[0]).unwrap();
        assert!(wanted[0].is_there(host.host()));
        assert_eq!(fs::read(tree.0.join("usr/local/bin/k3s")).unwrap(), program);
    }

    #[test]
    fn nothing_is_taken_without_a_hash_that_fits_or_for_another_machine() {
        let tree = Tree::new("wrong");
        tree.write("media/k3s-arm64", &elf(62));
        let host = tree.host();
        let source = "source = \"/media/k3s-arm64\"";
        assert!(found(&host, "source = \"/media/none\"").unwrap_err().contains("not there"));
        assert!(found(&host, source).unwrap_err().contains("gives no hash for k3s-arm64"));
        let pinned = |hash: &str| found(&host, &format!("{source}\nsha256 = \"{hash}\"")).unwrap().remove(0);
        let refused = fetched(&host, &pinned(&sha256(b"other"))).unwrap_err();
        assert!(refused.contains("hashes to") && refused.contains(&sha256(b"other")), "{refused}");
        let refused = fetched(&host, &pinned(&sha256(&elf(62)))).unwrap_err();
        assert!(refused.contains("built for amd64, and this machine is arm64"), "{refused}");
        tree.write("media/k3s-arm64", b"#!/bin/sh\n");
        let refused = fetched(&host, &pinned(&sha256(b"#!/bin/sh\n"))).unwrap_err();
        assert!(refused.contains("no program (ELF)"), "{refused}");
        assert!(!tree.0.join("usr/local/bin/k3s").exists());
        let http = found(&host, "source = \"http://mirror.lan\"").unwrap_err();
        assert!(http.contains("anybody on the way"), "{http}");
    }

    /// A mirror that serves `body`, ends each connection after `cut` bytes of it, and knows ranges.
    fn mirror(body: Vec<u8>, cut: usize) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                let mut from = 0;
                for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
                    if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
                        from = range.trim_end_matches('-').parse().unwrap();
                    }
                }
                let _ = match first.split(' ').nth(1).unwrap() {
                    path if path.starts_with("/r/v1.35.2%2Bk3s1/") => stream
                        .write_all(b"HTTP/1.1 302 Found\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n"),
                    "/there" => {
                        let rest = &body[from..];
                        let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
                        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", rest.len());
                        stream
                            .write_all(head.as_bytes())
                            .and_then(|()| stream.write_all(&rest[..cut.min(rest.len())]))
                    }
                    "/loop" => stream
                        .write_all(b"HTTP/1.1 302 Found\r\nlocation: /loop\r\ncontent-length: 0\r\n\r\n"),
                    "/drip" => {
                        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
                        let drop = |stream: &mut std::net::TcpStream| {
                            std::thread::sleep(Duration::from_millis(20));
                            stream.write_all(b".")
                        };
                        stream.write_all(head).and_then(|()| (0..1000).try_for_each(|_| drop(&mut stream)))
                    }
                    "/huge" => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5368709120\r\n\r\nabc"),
                    _ => stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
                };
            }
        });
        Url::parse(&format!("http://127.0.0.1:{port}/r")).unwrap()
    }

    #[test]
    fn a_download_goes_on_where_it_was_cut_off_and_follows_a_redirect() {
        let tree = Tree::new("mirror");
        let program = elf(183);
        let host = tree.host();
        let url = mirror(program.clone(), 150_000);
        let wanted = found(&host, &format!("source = \"{url}\"\nsha256 = \"{}\"", sha256(&program))).unwrap();
        fetched(&host, &wanted[0]).unwrap();
        assert_eq!(fs::read(tree.0.join("usr/local/bin/k3s")).unwrap(), program);
    }

    /// The first version was cut off, and then its owner asks for another: nothing of the first is in the second.
    #[test]
    fn a_download_that_was_cut_off_is_not_the_beginning_of_another_version() {
        let tree = Tree::new("versions");
        let host = tree.host();
        let (first, second) = (elf(183), [elf(183), vec![7; 50_000]].concat());
        let wanted = |body: &[u8]| {
            let hash = sha256(body);
            program(From::Url(mirror(body.to_vec(), 150_000).at("/there")), hash, arm64())
        };
        let mut partial = host.partial(path::BINARY, &sha256(&first)).unwrap();
        partial.add(&[1; 100_000]).unwrap();
        drop(partial);
        fetched(&host, &wanted(&second)).unwrap();
        assert_eq!(fs::read(tree.0.join("usr/local/bin/k3s")).unwrap(), second);
        assert_eq!(fs::read_dir(tree.0.join("usr/local/bin")).unwrap().count(), 1);
    }

    /// Byte by byte, or by connections that end after a few: what has come is kept.
    #[test]
    fn a_mirror_that_drips_is_given_up_and_gone_on_with_the_next_time() {
        let tree = Tree::new("drip");
        let host = tree.host();
        let body = vec![b'.'; 1000];
        let slow = mirror(body.clone(), 100);
        let download = |url: &Url, pace| {
            let mut partial = host.partial(path::BINARY, &sha256(&body)).unwrap();
            let done = block_on(download(url, &mut partial, 1000, pace, &mut |_, _| {}));
            (done.map_err(|failed| format!("{failed}; {}", failed.next)), partial.length())
        };
        let mut have = 0;
        for path in ["/drip", "/there"] {
            let (done, length) = download(&slow.at(path), Pace::of((500, Duration::from_millis(400))));
            let refused = done.unwrap_err();
            let says = refused.contains(&format!("{path}: too slow: ")) && refused.contains("from there");
            assert!(says && length > have && length < 1000, "{path}: {length}: {refused}");
            have = length;
        }
        assert_eq!(download(&mirror(body.clone(), 1000).at("/there"), Pace::of(LEAST)), (Ok(()), 1000));
    }

    #[test]
    fn circles_giants_and_what_is_not_there_end_with_their_cause() {
        let tree = Tree::new("bad-mirror");
        let host = tree.host();
        let url = mirror(vec![], 0);
        for (path, says) in
            [("/loop", "sends on and on"), ("/huge", "larger than 512 MiB"), ("/no", "no such release")]
        {
            let wanted = program(From::Url(url.at(path)), sha256(b"x"), arm64());
            let refused = fetched(&host, &wanted).unwrap_err();
            assert!(refused.contains(says), "{path}: {refused}");
        }
        for (path, says) in
            [("/loop", "sends on and on"), ("/no", "404"), ("/drip", "the whole answer took longer than")]
        {
            let refused = block_on(fetch_small(&url.at(path), Duration::from_secs(2))).unwrap_err();
            assert!(refused.to_string().contains(says), "{path}: {refused}");
        }
    }
}
