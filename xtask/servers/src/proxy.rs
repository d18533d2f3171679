//! A private web server that passes requests on to another server, as many users have one in front of the api. Its settings
//! are either its own defaults with compression, which changes the answers' `ETag`s, or a site that an operator has written.

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
    /// Caddy 2.
    Caddy,
    /// HAProxy.
    Haproxy,
}

/// A running proxy. Dropping it kills it.
#[derive(Debug)]
pub struct PrivateProxy {
    process: Option<Process>,
    folder: PathBuf,
    port: u16,
}

impl PrivateProxy {
    /// Starts it with compression in front of the server on a port of 127.0.0.1.
    pub fn start(program: ProxyProgram, backend_port: u16) -> Result<Self> {
        Self::start_with(program, |port| match program {
            ProxyProgram::Apache => apache_site(port, backend_port),
            ProxyProgram::Nginx => nginx_site(port, backend_port),
            ProxyProgram::Caddy => caddy_site(port, backend_port),
            ProxyProgram::Haproxy => haproxy_site(port, backend_port),
        })
    }

    /// Starts it with a site: what an operator writes about one server. `site` gets the port on 127.0.0.1 to listen on.
    pub fn start_with(program: ProxyProgram, site: impl FnOnce(u16) -> String) -> Result<Self> {
        let port = ports::free_port()?;
        let site = site(port);
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
                write(&settings, &apache_settings(&log, &site)?)?;
                ("Apache", launch_apache(folder, &settings)?)
            }
            ProxyProgram::Nginx => {
                write(&settings, &nginx_settings(&site))?;
                ("nginx", launch_nginx(folder, &settings)?)
            }
            ProxyProgram::Caddy => {
                write(&settings, &caddy_settings(&site))?;
                ("Caddy", launch_caddy(folder, &settings)?)
            }
            ProxyProgram::Haproxy => {
                write(&settings, &site)?;
                ("HAProxy", launch_haproxy(&settings)?)
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

/// Returns the path of Caddy.
pub fn find_caddy() -> Option<PathBuf> {
    find_system_program("caddy")
}

/// Returns the path of HAProxy.
pub fn find_haproxy() -> Option<PathBuf> {
    find_system_program("haproxy")
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
fn apache_site(port: u16, backend_port: u16) -> String {
    format!(
        "Listen 127.0.0.1:{port}\nAddOutputFilterByType BROTLI_COMPRESS;DEFLATE application/json\n\
         ProxyPreserveHost On\nProxyPass / http://127.0.0.1:{backend_port}/\n"
    )
}

fn apache_settings(log: &Path, site: &str) -> Result<String> {
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
        "ServerName localhost\nDefaultRuntimeDir .\nPidFile apache.pid\nErrorLog \"{log}\"\n{site}",
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

fn nginx_site(port: u16, backend_port: u16) -> String {
    format!(
        "gzip on;\ngzip_types application/json;\n\
         server {{\nlisten 127.0.0.1:{port};\nlocation / {{\n\
         proxy_pass http://127.0.0.1:{backend_port};\nproxy_set_header Host $http_host;\n}}\n}}\n"
    )
}

/// It runs in one process for the same reason as Apache. The folders are those that it wants to create at its start.
fn nginx_settings(site: &str) -> String {
    let folders: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .into_iter()
        .map(|purpose| format!("{purpose}_temp_path {purpose};\n"))
        .collect();
    format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr;\nevents {{}}\n\
         http {{\n{folders}access_log off;\n{site}}}\n"
    )
}

fn caddy_site(port: u16, backend_port: u16) -> String {
    format!(
        "http://localhost:{port} {{\nbind 127.0.0.1\nencode gzip\nreverse_proxy 127.0.0.1:{backend_port}\n}}\n"
    )
}

/// Without a port for administration, and without one that redirects to HTTPS.
fn caddy_settings(site: &str) -> String {
    format!("{{\nadmin off\nauto_https disable_redirects\nskip_install_trust\n}}\n{site}")
}

/// It keeps its files in the folder.
fn launch_caddy(folder: &Path, settings: &Path) -> Result<Launch> {
    let program = find_caddy().context("Caddy is not installed")?;
    Ok(Launch::new("Caddy", program)
        .env("HOME", folder)
        .arg("run")
        .arg("--adapter")
        .arg("caddyfile")
        .arg("--config")
        .arg(settings))
}

fn haproxy_site(port: u16, backend_port: u16) -> String {
    format!(
        "defaults\nmode http\ntimeout connect 5s\ntimeout client 30s\ntimeout server 30s\n\
         listen api\nbind 127.0.0.1:{port}\ncompression algo gzip\ncompression type application/json\n\
         server api 127.0.0.1:{backend_port}\n"
    )
}

/// `-db`: in one process, and in the foreground.
fn launch_haproxy(settings: &Path) -> Result<Launch> {
    let program = find_haproxy().context("HAProxy is not installed")?;
    Ok(Launch::new("HAProxy", program)
        .arg("-db")
        .arg("-f")
        .arg(settings))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
