//! The memory that this process may have, and the budget that follows from it.
//!
//! # What bounds a process
//! The machine's memory, the limits of its control group and of every group above it, and its own limits on address
//! space and data. The least of them counts. A unit of systemd or a pod of Kubernetes has its limit in a group below
//! the root of what the process sees, and a slice or a node may have a lower one above it.
//!
//! # What may be hidden
//! A unit with `ProcSubset=pid` has no `/proc/meminfo`, so the machine's memory comes from `sysinfo(2)` too. Where control
//! groups are mounted is read from `/proc/self/mountinfo`: version 1, version 2, or both. If the group of the process
//! cannot be looked up, that is a warning, because its limit may be less than what is assumed.
//!
//! No crate does this: `sysinfo` reads the group at one path and needs `/proc/meminfo`, and `cgroups-rs` manages groups
//! whose paths its user knows.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

/// The budget where nothing tells how much memory there is.
const BUDGET_WITHOUT_LIMIT: u64 = 256 << 20;

/// The least of the limits on the memory of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    /// The limit and what sets it. `None` if nothing tells.
    least: Option<Limit>,
    /// The limit that could not be found out and may be less, as a warning.
    unknown: Option<String>,
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Limit {
    bytes: u64,
    /// The thing that sets it, as the end of a sentence.
    source: String,
}

/// The memory budget of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) bytes: u64,
    /// Its origin, as part of a sentence.
    pub(crate) source: String,
    /// The warnings about it.
    pub(crate) warnings: Vec<String>,
}

impl Budget {
    /// The budget with this setting in this process.
    pub(crate) fn new(configured: Option<u64>) -> Self {
        Self::within(configured, MemoryLimit::of_this_process())
    }

    fn within(configured: Option<u64>, limit: MemoryLimit) -> Self {
        let MemoryLimit { least, unknown } = limit;
        match (configured, least) {
            (Some(bytes), least) => {
                let warning = least.filter(|limit| bytes > limit.bytes).map(|limit| {
                    format!(
                        "the memory budget, {bytes} bytes, is above {} bytes, {}: the process would be killed before \
                         the budget evicts anything. Lower memory_budget, or leave it at auto",
                        limit.bytes, limit.source
                    )
                });
                Self {
                    bytes,
                    source: "as set".into(),
                    warnings: warning.into_iter().collect(),
                }
            }
            (None, Some(limit)) => Self {
                bytes: limit.bytes / 4,
                source: format!("a quarter of {} bytes, {}", limit.bytes, limit.source),
                warnings: unknown.into_iter().collect(),
            },
            (None, None) => Self {
                bytes: BUDGET_WITHOUT_LIMIT,
                source: "assumed, because nothing tells how much memory there is".into(),
                warnings: vec![format!(
                    "nothing tells how much memory there is, so the memory budget is {BUDGET_WITHOUT_LIMIT} bytes: set \
                     memory_budget to a quarter of what the server may use"
                )],
            },
        }
    }
}

impl MemoryLimit {
    fn of_this_process() -> Self {
        // A container may show less in the file than the system call tells, and the file may be hidden.
        let file = fs::read_to_string("/proc/meminfo").ok();
        let file = file.and_then(|text| total_of(&text));
        let machine = file.into_iter().chain(machine()).map(|bytes| Limit {
            bytes,
            source: "the machine's memory".into(),
        });
        Self::least_of(Path::new("/"), machine.chain(of_resources()))
    }

    /// The least of `others` and the limits of control groups, which are looked for below `root`.
    fn least_of(root: &Path, others: impl Iterator<Item = Limit>) -> Self {
        let (groups, unknown) = of_groups(root);
        Self {
            least: others.chain(groups).min_by_key(|limit| limit.bytes),
            unknown,
        }
    }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total_of(meminfo: &str) -> Option<u64> {
    let mut lines = meminfo.lines();
    let line = lines.find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1_024).filter(|bytes| *bytes > 0)
}

/// The machine's memory, by `sysinfo(2)`, which needs no file.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn machine() -> Option<u64> {
    let found = rustix::system::sysinfo();
    // The types differ between architectures.
    let (total, unit) = (u128::from(found.totalram), u128::from(found.mem_unit));
    u64::try_from(total * unit.max(1))
        .ok()
        .filter(|bytes| *bytes > 0)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn machine() -> Option<u64> {
    None
}

/// The limits that `ulimit -v` and `-d` set.
#[cfg(unix)]
fn of_resources() -> impl Iterator<Item = Limit> {
    use rustix::process::{Resource, getrlimit};

    let resources = [
        (Resource::As, "the limit on address space (`ulimit -v`)"),
        (Resource::Data, "the limit on data (`ulimit -d`)"),
    ];
    resources.into_iter().filter_map(|(resource, source)| {
        let bytes = getrlimit(resource).current?;
        let source = source.into();
        Some(Limit { bytes, source })
    })
}

#[cfg(not(unix))]
fn of_resources() -> impl Iterator<Item = Limit> {
    std::iter::empty()
}

/// A version of control groups, or rather one hierarchy with the memory of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A place where control groups are mounted.
#[derive(Debug)]
struct Mount {
    version: Version,
    /// The group that is mounted there.
    group: PathBuf,
    place: PathBuf,
}

/// The limits of the control groups of this process, and what could not be found out about them.
fn of_groups(root: &Path) -> (Vec<Limit>, Option<String>) {
    let own = root.join("proc/self");
    // Bytes, as the names of groups are, and not only text.
    let Ok(groups) = fs::read(own.join("cgroup")) else {
        // A kernel without control groups has everything but this file.
        let unknown = (!own.join("limits").exists() && cfg!(target_os = "linux")).then(|| {
            "/proc/self/cgroup cannot be read, so a limit of the control group on memory is not known: set \
             memory_budget to a quarter of it"
                .into()
        });
        return (Vec::new(), unknown);
    };
    let mounts = mounts(&own);
    let mut limits = Vec::new();
    let mut unknown = None;
    let (mut is_in_groups, mut is_any_known) = (false, false);
    for line in groups.split(|byte| *byte == b'\n') {
        let Some((version, path)) = group(line) else {
            continue;
        };
        let of_version = mounts.iter().filter(|mount| mount.version == version);
        let places = of_version.map(|mount| mount.folders(path));
        let mut is_known = false;
        for (folders, groups) in places {
            for (folder, group) in folders.iter().zip(groups) {
                let folder = root.join(folder.strip_prefix("/").unwrap_or(folder));
                // The first is the group of the process.
                is_known |= folder.join("cgroup.procs").exists();
                for found in of_folder(version, &folder, &group) {
                    match found {
                        Ok(limit) => limits.push(limit),
                        Err(problem) => unknown = Some(problem),
                    }
                }
            }
        }
        is_in_groups = true;
        is_any_known |= is_known;
        // The root has no limits, and is what a process without a group of its own is in.
        if !is_known && path != Path::new("/") {
            unknown = Some(format!(
                "the control group {} cannot be looked up, so its limit on memory is not known: set memory_budget \
                 to a quarter of it, or let the process see /sys/fs/cgroup",
                shown(path)
            ));
        }
    }
    // In a namespace of control groups, the group of a container is the root of what it sees, if it sees it.
    if is_in_groups && !is_any_known && unknown.is_none() {
        unknown = Some(
            "no control group can be looked up, so a limit on memory is not known: set memory_budget to a quarter of it, \
             or let the process see /sys/fs/cgroup"
                .into(),
        );
    }
    (limits, unknown)
}

/// The hierarchy and the path of a line of `/proc/self/cgroup`, if it has to do with memory: `4:memory:/a`, `0::/a`.
fn group(line: &[u8]) -> Option<(Version, &Path)> {
    let mut parts = line.splitn(3, |byte| *byte == b':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let path = Path::new(name(path)?);
    if controllers.is_empty() {
        return Some((Version::Two, path));
    }
    let mut controllers = controllers.split(|byte| *byte == b',');
    controllers
        .any(|controller| controller == b"memory")
        .then_some((Version::One, path))
}

/// The name of a file that has these bytes.
#[cfg(unix)]
fn name(bytes: &[u8]) -> Option<&OsStr> {
    Some(std::os::unix::ffi::OsStrExt::from_bytes(bytes))
}

#[cfg(not(unix))]
fn name(bytes: &[u8]) -> Option<&OsStr> {
    str::from_utf8(bytes).ok().map(OsStr::new)
}

/// A path for people, who may have chosen control characters for its names.
fn shown(path: &Path) -> String {
    let shown = path.display().to_string();
    shown.escape_debug().to_string()
}

/// The mounts of control groups that `/proc/self/mountinfo` lists, or else the usual ones.
fn mounts(own: &Path) -> Vec<Mount> {
    let Ok(list) = fs::read(own.join("mountinfo")) else {
        let usual = |version, place: &str| Mount {
            version,
            group: "/".into(),
            place: place.into(),
        };
        return vec![
            usual(Version::Two, "/sys/fs/cgroup"),
            usual(Version::One, "/sys/fs/cgroup/memory"),
        ];
    };
    list.split(|byte| *byte == b'\n')
        .filter_map(mount)
        .collect()
}

/// A line of `mountinfo`: `35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory`.
fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut before = fields.by_ref().take_while(|field| *field != b"-").skip(3);
    let (group, place) = (before.next()?, before.next()?);
    before.for_each(drop);
    let (kind, _, options) = (fields.next()?, fields.next()?, fields.next()?);
    let mut options = options.split(|byte| *byte == b',');
    let version = match kind {
        b"cgroup2" => Version::Two,
        b"cgroup" if options.any(|option| option == b"memory") => Version::One,
        _ => return None,
    };
    Some(Mount {
        version,
        group: name(&unescaped(group))?.into(),
        place: name(&unescaped(place))?.into(),
    })
}

/// A path of `mountinfo`, which writes white space, backslashes and `#` by their numbers, as in `\040`.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let number = after.get(..3).filter(|_| *first == b'\\');
        let number = number.and_then(|digits| str::from_utf8(digits).ok());
        match number.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

impl Mount {
    /// The folders of a group and of all above it that are mounted here, from the group upwards, and their names.
    fn folders(&self, path: &Path) -> (Vec<PathBuf>, Vec<String>) {
        // A process that sees only a part of the tree may have a path outside of it, `/../a`; all it sees is the mount.
        let below = path.strip_prefix(&self.group);
        let below = below.ok().filter(|below| {
            let mut parts = below.components();
            !parts.any(|part| part == std::path::Component::ParentDir)
        });
        let below = below.unwrap_or(Path::new(""));
        below
            .ancestors()
            .map(|part| {
                let name = self.group.join(part);
                (self.place.join(part), shown(&name))
            })
            .unzip()
    }
}

/// The limits of one group, and the warnings about those that cannot be read.
fn of_folder(version: Version, folder: &Path, group: &str) -> Vec<Result<Limit, String>> {
    let read = |file: &str| match fs::read(folder.join(file)) {
        Ok(text) => Some(Ok(String::from_utf8_lossy(&text).trim().to_owned())),
        // The root has none, and no group has those of a controller that is off.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        // A group that goes away meanwhile has none either.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => None,
        Err(error) => Some(Err(error.to_string())),
    };
    let of_all_above = || match read("memory.stat")? {
        Ok(text) => {
            let mut lines = text.lines();
            let found = lines.find_map(|line| line.strip_prefix("hierarchical_memory_limit "))?;
            Some(Ok(found.trim().to_owned()))
        }
        Err(error) => Some(Err(error)),
    };
    let found = match version {
        Version::Two => [
            ("memory.max", read("memory.max")),
            // Above it the process is not killed, but slowed until it stands.
            ("memory.high", read("memory.high")),
        ],
        Version::One => [
            ("memory.limit_in_bytes", read("memory.limit_in_bytes")),
            // It counts groups that are not mounted here, too.
            ("hierarchical_memory_limit", of_all_above()),
        ],
    };
    let limits = found.into_iter().filter_map(|(name, text)| {
        let source = format!("{name} of the control group {group}");
        let problem = match text? {
            // No limit.
            Ok(text) if text == "max" => return None,
            Ok(text) => match text.parse() {
                Ok(bytes) => return Some(Ok(Limit { bytes, source })),
                Err(_) => format!("{:?} is no number", text.chars().take(40).collect::<String>()),
            },
            Err(error) => error,
        };
        Some(Err(format!(
            "{source} cannot be read ({problem}), so that limit on memory is not known: set memory_budget to a quarter of it"
        )))
    });
    limits.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A file system that a process may see, which goes with the test.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let path =
                std::env::temp_dir().join(format!("tidegate-memory-{name}-{}", std::process::id()));
            let root = Self(path);
            root.write("proc/self/limits", "");
            for (file, text) in files {
                root.write(file, text);
                // Every group has it.
                if let Some((folder, file)) = file.rsplit_once('/')
                    && file.starts_with("memory.")
                {
                    root.write(&format!("{folder}/cgroup.procs"), "");
                }
            }
            root
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn limit(&self, machine: u64) -> MemoryLimit {
            let source = "the machine's memory".into();
            let machine = Limit {
                bytes: machine,
                source,
            };
            MemoryLimit::least_of(&self.0, std::iter::once(machine))
        }

        /// The least limit and its source, of a machine with 64 GiB.
        fn least(&self) -> (u64, String) {
            let limit = self.limit(64 * GIB);
            assert_eq!(limit.unknown, None);
            let least = limit.least.unwrap();
            (least.bytes, least.source)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const TWO: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    const ONE: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                       32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";

    #[test]
    fn the_least_limit_from_the_group_of_the_process_to_the_root_counts() {
        let unit = "sys/fs/cgroup/system.slice/tidegate.service";
        let slice = "sys/fs/cgroup/system.slice";
        let root = Root::new(
            "two",
            &[
                ("proc/self/cgroup", "0::/system.slice/tidegate.service\n"),
                ("proc/self/mountinfo", TWO),
                (&format!("{unit}/memory.max"), "2147483648\n"),
                (&format!("{unit}/memory.high"), "max\n"),
                (&format!("{slice}/memory.max"), "max\n"),
            ],
        );
        let unit_name = "of the control group /system.slice/tidegate.service";
        assert_eq!(root.least(), (2 * GIB, format!("memory.max {unit_name}")));
        root.write(&format!("{unit}/memory.high"), "1610612736\n");
        assert_eq!(
            root.least(),
            (3 * GIB / 2, format!("memory.high {unit_name}"))
        );
        root.write(&format!("{slice}/memory.max"), "1073741824\n");
        let source = "memory.max of the control group /system.slice";
        assert_eq!(root.least(), (GIB, source.into()));
        // The machine may have less than its groups.
        let limit = root.limit(GIB / 2).least.unwrap();
        assert_eq!(limit.source, "the machine's memory");
    }

    #[test]
    fn groups_of_version_one_are_found_beside_those_of_version_two() {
        let root = Root::new(
            "one",
            &[
                (
                    "proc/self/cgroup",
                    "12:cpu,cpuacct:/a\n4:memory:/docker/abc\n0::/\n",
                ),
                ("proc/self/mountinfo", &format!("{ONE}{TWO}")),
                (
                    "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
                (
                    "sys/fs/cgroup/memory/docker/memory.limit_in_bytes",
                    "1073741824\n",
                ),
            ],
        );
        let source = "memory.limit_in_bytes of the control group /docker";
        assert_eq!(root.least(), (GIB, source.into()));
        root.write(
            "sys/fs/cgroup/memory/docker/abc/memory.stat",
            "cache 1\nhierarchical_memory_limit 536870912\n",
        );
        let source = "hierarchical_memory_limit of the control group /docker/abc";
        assert_eq!(root.least(), (GIB / 2, source.into()));
    }

    #[test]
    fn a_container_sees_its_group_as_the_root_or_as_what_is_mounted() {
        // A namespace of control groups: the group of the container is `/`.
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", TWO),
            ("sys/fs/cgroup/memory.max", "536870912\n"),
        ];
        let source = "memory.max of the control group /";
        assert_eq!(
            Root::new("namespace", &files).least(),
            (GIB / 2, source.into())
        );
        // None, and the group alone is mounted.
        let mounted =
            "30 23 0:26 /docker/abc /sys/fs/cgroup\\040here rw - cgroup cgroup rw,memory\n";
        let files = [
            ("proc/self/cgroup", "4:memory:/docker/abc/worker\n"),
            ("proc/self/mountinfo", mounted),
            (
                "sys/fs/cgroup here/worker/memory.limit_in_bytes",
                "536870912\n",
            ),
        ];
        let source = "memory.limit_in_bytes of the control group /docker/abc/worker";
        assert_eq!(
            Root::new("mounted", &files).least(),
            (GIB / 2, source.into())
        );
        // The process was moved out of what its namespace shows.
        let files = [
            ("proc/self/cgroup", "0::/../sibling\n"),
            ("proc/self/mountinfo", TWO),
            ("sys/fs/cgroup/memory.max", "536870912\n"),
        ];
        assert_eq!(Root::new("outside", &files).least().0, GIB / 2);
    }

    #[test]
    fn a_group_that_is_hidden_is_warned_of() {
        let files = [
            ("proc/self/cgroup", "0::/system.slice/tidegate.service\n"),
            ("proc/self/mountinfo", TWO),
        ];
        let limit = Root::new("hidden", &files).limit(64 * GIB);
        let budget = Budget::within(None, limit);
        assert_eq!(budget.bytes, 16 * GIB);
        let warning = "/system.slice/tidegate.service cannot be looked up";
        assert!(budget.warnings[0].contains(warning), "{budget:?}");
        // So is the group of a container, which is the root of its namespace.
        let files = [("proc/self/cgroup", "0::/\n"), ("proc/self/mountinfo", "")];
        let limit = Root::new("unmounted", &files).limit(64 * GIB);
        assert!(limit.unknown.is_some());
        // A kernel without control groups has nothing to hide.
        assert_eq!(Root::new("none", &[]).limit(GIB).unknown, None);
    }

    #[test]
    fn limits_that_cannot_be_read_are_warned_of() {
        for (text, word) in [
            ("", "\"\""),
            ("abc", "\"abc\""),
            ("-1", "-1"),
            ("1 GiB", "1 GiB"),
        ] {
            let files = [
                ("proc/self/cgroup", "0::/a\n"),
                ("proc/self/mountinfo", TWO),
                ("sys/fs/cgroup/a/memory.max", text),
                ("sys/fs/cgroup/a/memory.high", "max"),
            ];
            let limit = Root::new("unreadable", &files).limit(GIB);
            let unknown = limit.unknown.expect(text);
            let begin = "memory.max of the control group /a cannot be read";
            assert!(
                unknown.starts_with(begin) && unknown.contains(word),
                "{unknown}"
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn names_of_any_bytes_are_followed() {
        use std::os::unix::ffi::OsStrExt as _;

        let root = Root::new("bytes", &[]);
        let folder = root
            .0
            .join("sys/fs/cgroup#a")
            .join(OsStr::from_bytes(b"g\xe9"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("cgroup.procs"), "").unwrap();
        fs::write(folder.join("memory.max"), "536870912\n").unwrap();
        fs::write(root.0.join("proc/self/cgroup"), b"0::/g\xe9\n").unwrap();
        let mounts = b"9 1 0:1 / /mnt/\xe9 rw - ext4 /dev/\xe9 rw\n\
                       30 23 0:26 / /sys/fs/cgroup\\043a rw - cgroup2 cgroup2 rw\n";
        fs::write(root.0.join("proc/self/mountinfo"), mounts).unwrap();
        assert_eq!(root.least().0, GIB / 2);
        // One that cannot be seen is named.
        fs::remove_dir_all(&folder).unwrap();
        let unknown = root.limit(GIB).unknown.unwrap();
        assert!(
            unknown.contains("the control group /g\u{fffd} cannot"),
            "{unknown}"
        );
    }

    #[test]
    fn numbers_of_characters_are_read() {
        for (text, path) in [
            ("/a\\040b\\011c\\012d\\134e\\043f", "/a b\tc\nd\\e#f"),
            ("/a\\134040", "/a\\040"),
            ("/a\\04", "/a\\04"),
            ("/a\\9999", "/a\\9999"),
            ("\\", "\\"),
        ] {
            assert_eq!(unescaped(text.as_bytes()), path.as_bytes());
        }
    }

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24575 kB\nMemFree: 1 kB\n";
        assert_eq!(total_of(text), Some(24_575 * 1_024));
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn a_budget_is_finite_whatever_is_known() {
        let nothing = MemoryLimit {
            least: None,
            unknown: None,
        };
        let budget = Budget::within(None, nothing.clone());
        assert_eq!((budget.bytes, budget.warnings.len()), (256 << 20, 1));
        assert_eq!(Budget::within(Some(7), nothing).warnings, [""; 0]);
        let limit = MemoryLimit {
            least: Some(Limit {
                bytes: GIB,
                source: "x".into(),
            }),
            unknown: None,
        };
        assert_eq!(Budget::within(Some(GIB), limit.clone()).warnings, [""; 0]);
        let above = Budget::within(Some(GIB + 1), limit);
        assert_eq!((above.bytes, above.warnings.len()), (GIB + 1, 1));
        #[cfg(target_os = "linux")]
        assert!(MemoryLimit::of_this_process().least.is_some());
    }
}
