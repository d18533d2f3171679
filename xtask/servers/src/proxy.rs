//! A private web server that passes requests on to another server and compresses the answers, as many users have one in
//! front of the api. It changes the answers' `ETag`s.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::interrupt::wait_for;
use crate::process::{Launch, Process, find_program, find_system_program};
use crate::{ports, temporary};

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The user and group `nobody`, as whom root runs a proxy. Apache refuses to serve as root.
const NOBODY: (u32, u32) = (65_534, 65_534);

/// Where Debian, Fedora and Arch Linux have the modules of Apache.
const APACHE_MODULES: [&str; 3] = [
    "/usr/lib/apache2/modules",
    "/usr/lib64/httpd/modules",
    "/usr/lib/httpd/modules",
];

/// A program that can be a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProgram {
    /// Apache httpd 2.4. It compresses with brotli and gzip.
    Apache,
    /// nginx. It compresses with gzip.
    Nginx,
}

/// A running proxy. Dropping it kills it.
#[derive(Debug)]
pub struct PrivateProxy {
    process: Option<Process>,
    folder: PathBuf,
    port: u16,
}

impl PrivateProxy {
    /// Starts it in front of the server on a port of 127.0.0.1.
    pub fn start(program: ProxyProgram, backend_port: u16) -> Result<Self> {
        let port = ports::free_port()?;
        let mut proxy = Self {
            process: None,
            folder: temporary::folder("proxy"),
            port,
        };
        let folder = &proxy.folder;
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let settings = folder.join("proxy.conf");
        let log = folder.join("proxy.log");
        let (name, launch) = match program {
            ProxyProgram::Apache => {
                write(&settings, &apache_settings(&log, port, backend_port)?)?;
                ("Apache", launch_apache(folder, &settings)?)
            }
            ProxyProgram::Nginx => {
                write(&settings, &nginx_settings(port, backend_port))?;
                ("nginx", launch_nginx(folder, &settings)?)
            }
        };
        write(&log, "")?;
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            for path in [folder, &settings, &log] {
                std::os::unix::fs::chown(path, Some(NOBODY.0), Some(NOBODY.1))
                    .with_context(|| format!("cannot give {} to nobody", path.display()))?;
            }
        }
        let mut process = launch
            .directory(folder)
            .user(is_root.then_some(NOBODY))
            .log_to(&log)
            .spawn()?;
        wait_for(&format!("{name} does not start"), START_TIMEOUT, || {
            process.check_running()?;
            Ok(TcpStream::connect(("127.0.0.1", port)).ok())
        })?;
        proxy.process = Some(process);
        Ok(proxy)
    }

    /// Returns the port on 127.0.0.1 that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PrivateProxy {
    fn drop(&mut self) {
        drop(self.process.take());
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Returns the path of Apache httpd.
pub fn find_apache() -> Option<PathBuf> {
    find_system_program("apache2").or_else(|| find_program("httpd"))
}

/// Returns the path of nginx.
pub fn find_nginx() -> Option<PathBuf> {
    find_system_program("nginx")
}

/// It runs in one process (`-X`), because the kernel kills only that process when its parent dies.
fn launch_apache(folder: &Path, settings: &Path) -> Result<Launch> {
    let program = find_apache().context("Apache httpd is not installed")?;
    Ok(Launch::new("Apache", program)
        .arg("-X")
        .arg("-d")
        .arg(folder)
        .arg("-f")
        .arg(settings))
}

/// Debian's list of compressed types lacks JSON, so the operator of an api adds it. All else about compression is default.
fn apache_settings(log: &Path, port: u16, backend_port: u16) -> Result<String> {
    let modules = APACHE_MODULES
        .into_iter()
        .find(|folder| Path::new(folder).is_dir())
        .context("the modules of Apache httpd are not installed")?;
    let mut settings = String::new();
    for module in [
        "mpm_event",
        "authz_core",
        "filter",
        "deflate",
        "brotli",
        "proxy",
        "proxy_http",
    ] {
        settings.push_str(&format!(
            "LoadModule {module}_module {modules}/mod_{module}.so\n"
        ));
    }
    settings.push_str(&format!(
        "ServerName localhost\nListen 127.0.0.1:{port}\nDefaultRuntimeDir .\nPidFile apache.pid\nErrorLog \"{log}\"\n\
         AddOutputFilterByType BROTLI_COMPRESS;DEFLATE application/json\n\
         ProxyPreserveHost On\nProxyPass / http://127.0.0.1:{backend_port}/\n",
        log = log.display()
    ));
    Ok(settings)
}

fn launch_nginx(folder: &Path, settings: &Path) -> Result<Launch> {
    let program = find_nginx().context("nginx is not installed")?;
    Ok(Launch::new("nginx", program)
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(settings))
}

/// It runs in one process for the same reason as Apache. The folders are those that it wants to create at its start.
fn nginx_settings(port: u16, backend_port: u16) -> String {
    let folders: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .into_iter()
        .map(|purpose| format!("{purpose}_temp_path {purpose};\n"))
        .collect();
    format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr;\nevents {{}}\n\
         http {{\n{folders}access_log off;\ngzip on;\ngzip_types application/json;\n\
         server {{\nlisten 127.0.0.1:{port};\nlocation / {{\n\
         proxy_pass http://127.0.0.1:{backend_port};\nproxy_set_header Host $http_host;\n}}\n}}\n}}\n"
    )
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
