//! What the machine, or the container, gives to a program.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;

use super::Fault;
use crate::commands::livez;
use crate::files;

const MIB: u64 = 1024 * 1024;

/// Checks that a program can listen on its port. If it runs already, the port is its own.
pub async fn port((host, port): &(String, u16), setting: &str) -> Option<Fault> {
    let Err(error) = TcpListener::bind((host.as_str(), *port)) else {
        return None;
    };
    if error.kind() == ErrorKind::AddrInUse && livez(host, *port).await.is_ok() {
        return None;
    }
    let remedy = if error.kind() == ErrorKind::AddrInUse {
        format!("stop the other program, or choose another {setting}")
    } else {
        format!("correct {setting} and the host beside it")
    };
    Some(Fault::error(
        format!("cannot listen on {host}:{port} ({setting}): {error}"),
        "the program does not start",
        remedy,
    ))
}

/// Checks that the process may open as many files as it has connections. Programs raise their limit to the hard limit.
/// `needed_for` says what they are, and `remedy` what else can be done than to raise the limit.
pub fn open_files(needed: usize, needed_for: &str, remedy: &str) -> Option<Fault> {
    let limit = files::hard_limit();
    (limit < needed).then(|| {
        Fault::warning(
            format!(
                "the process may open {limit} files (ulimit -Hn), and needs {needed} ({needed_for})"
            ),
            "new connections wait or are refused before that number is reached",
            format!("raise the limit (LimitNOFILE, --ulimit nofile){remedy}"),
        )
    })
}

/// Checks that the process may have as much memory as its settings allow it to take.
pub fn memory(needed_bytes: u64, settings: &str) -> Option<Fault> {
    memory_on(Path::new("/"), needed_bytes, settings)
}

fn memory_on(root: &Path, needed_bytes: u64, settings: &str) -> Option<Fault> {
    let (limit, name) = memory_limit(root)?;
    (limit < needed_bytes).then(|| {
        Fault::warning(
            format!(
                "{name} is {} MiB, and with {settings} the process may need {} MiB",
                limit / MIB,
                needed_bytes / MIB
            ),
            "the system kills a process that exceeds it",
            format!("raise the limit, or lower {settings}"),
        )
    })
}

/// Returns the smallest of the limits of the process's control groups and of the machine's memory, and its name.
fn memory_limit(root: &Path) -> Option<(u64, String)> {
    let of_machine =
        memory_of_machine(root).map(|bytes| (bytes, "the machine's memory".to_owned()));
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let of_groups = groups.lines().flat_map(|line| limits_of_group(root, line));
    of_groups.chain(of_machine).min()
}

fn memory_of_machine(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = total.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// The limits of a group and of all groups above it. A line is `0::/path` (version 2) or `7:memory:/path` (version 1). In a
/// container the path may be that of the host, which does not exist here. Then the group at the top is the container's own.
fn limits_of_group(root: &Path, line: &str) -> Vec<(u64, String)> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
        return Vec::new();
    };
    let (mount, file) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        names if names.split(',').any(|name| name == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let limit_of = |group: &Path| {
        let relative = group.strip_prefix("/").unwrap_or(group);
        let text = fs::read_to_string(root.join(mount).join(relative).join(file)).ok()?;
        // Without a limit it is `max`.
        let bytes = text.trim().parse().ok()?;
        Some((
            bytes,
            format!("the memory limit of the control group {}", group.display()),
        ))
    };
    Path::new(path).ancestors().filter_map(limit_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with files like those of the system.
    struct Root(std::path::PathBuf);

    impl Root {
        fn with(files: &[(&str, &str)]) -> Self {
            let root =
                Self(std::env::temp_dir().join(format!("orders-root-{}", uuid::Uuid::new_v4())));
            for (path, text) in files {
                let file = root.0.join(path);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
            root
        }

        fn limit(&self) -> Option<u64> {
            memory_limit(&self.0).map(|(bytes, _)| bytes / MIB)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    const MACHINE: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:        4194304 kB\nMemFree: 1 kB\n",
    );

    #[test]
    fn the_smallest_limit_of_all_groups_counts() {
        let version_2 = Root::with(&[
            MACHINE,
            ("proc/self/cgroup", "0::/pod/container\n"),
            ("sys/fs/cgroup/pod/container/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "536870912\n"),
        ]);
        assert_eq!(version_2.limit(), Some(512));
        let in_container = Root::with(&[
            MACHINE,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "268435456\n"),
        ]);
        assert_eq!(in_container.limit(), Some(256));
        let version_1 = Root::with(&[
            MACHINE,
            ("proc/self/cgroup", "7:cpu,memory:/elsewhere\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "134217728\n"),
        ]);
        assert_eq!(version_1.limit(), Some(128));
    }

    #[test]
    fn without_a_limit_the_memory_of_the_machine_counts() {
        let free = Root::with(&[
            MACHINE,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "max\n"),
        ]);
        assert_eq!(free.limit(), Some(4096));
        assert!(memory_on(&free.0, 4096 * MIB, "A").is_none());
        let fault = memory_on(&free.0, 4097 * MIB, "A").unwrap();
        assert!(
            fault
                .what
                .contains("is 4096 MiB, and with A the process may need 4097 MiB"),
            "{fault:?}"
        );
        assert_eq!(Root::with(&[]).limit(), None, "not Linux");
    }

    #[tokio::test]
    async fn a_port_is_free_taken_by_another_program_or_by_this_one() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = ("127.0.0.1".to_owned(), taken.local_addr().unwrap().port());
        taken.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(taken).unwrap();
        let serving = tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            for answer in [
                "220 mail.example ESMTP\r\n",
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            ] {
                let (mut stream, _) = listener.accept().await.unwrap();
                assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            listener
        });
        let fault = port(&address, "SERVER_PORT").await.unwrap();
        assert!(fault.remedy.contains("stop the other program"), "{fault:?}");
        assert_eq!(port(&address, "SERVER_PORT").await, None);
        drop(serving.await.unwrap());
        assert_eq!(port(&address, "SERVER_PORT").await, None);
        let nowhere = ("192.0.2.1".to_owned(), 80);
        let fault = port(&nowhere, "SERVER_PORT").await.unwrap();
        assert!(fault.remedy.contains("correct SERVER_PORT"), "{fault:?}");
    }
}
