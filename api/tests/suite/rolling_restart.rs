//! Two processes behind a balancer are replaced one after the other, under load. No client notices.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use servers::ports::free_port;
use servers::proxy::{PrivateProxy, ProxyProgram};
use shared::testing::{TestDatabase, eventually};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, block_in_place};

use crate::support::program::Program;
use crate::support::{PATIENCE, ask_on, model, store};

/// Longer than the balancer takes to notice that a check fails.
const DRAIN: (&str, &str) = ("SHUTDOWN_DRAIN_MS", "2000");
const PATH: &str = "/order/b563feb7b2b84b6test";
const CLIENTS: usize = 8;

/// Removes a process three failing checks after it has begun to stop: 0.6 s. It sends no request twice, so a lost one shows.
fn site(port: u16, backends: [u16; 2]) -> String {
    let servers: String = backends
        .iter()
        .map(|port| format!("server api{port} 127.0.0.1:{port} check inter 200ms fall 3 rise 1\n"))
        .collect();
    format!(
        "defaults\nmode http\ntimeout connect 5s\ntimeout client 30s\ntimeout server 30s\nretries 0\n\
         listen api\nbind 127.0.0.1:{port}\nhttp-reuse always\noption httpchk\n\
         http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host localhost\n{servers}"
    )
}

fn start(port: u16, database: &TestDatabase) -> Program {
    let command = Command::new(env!("CARGO_BIN_EXE_api"));
    Program::start_on(port, command, database, &[DRAIN])
}

async fn wait_until_used(program: &Program) {
    program.wait_until_ready().await;
    eventually("the balancer sends it requests", PATIENCE, async || {
        let stats = program.get("/api/v1/cache/stats").await.json();
        stats["hits"].as_u64() > Some(0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_behind_a_balancer_loses_no_request() {
    let database = TestDatabase::create();
    store(&database, &model());
    let ports = [free_port().unwrap(), free_port().unwrap()];
    let mut programs = ports.map(|port| start(port, &database));
    for program in &programs {
        program.wait_until_ready().await;
    }
    let balancer = block_in_place(|| {
        PrivateProxy::start_with(ProxyProgram::Haproxy, |port| site(port, ports))
    })
    .unwrap();
    let port = balancer.port();
    let (is_over, answered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (is_over, answered) = (Arc::clone(&is_over), Arc::clone(&answered));
        clients.spawn(async move {
            let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(ask_on(&mut connection, PATH).await, 200);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for (program, port) in programs.iter_mut().zip(ports) {
        wait_until_used(program).await;
        kill_process(Pid::from_child(&program.process), Signal::TERM).unwrap();
        let status = block_in_place(|| program.process.wait()).unwrap();
        assert!(status.success(), "{status}: {}", program.read_log());
        *program = start(port, &database);
        wait_until_used(program).await;
    }
    is_over.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.expect("a request was lost");
    }
    assert!(answered.load(Ordering::Relaxed) > CLIENTS * 10);
}
