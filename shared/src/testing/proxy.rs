//! A TCP proxy in front of a server that tests can cut and mend.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes bytes on until it is cut.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    passing_tx: Arc<watch::Sender<bool>>,
}

impl TcpProxy {
    /// Starts passing connections on to `host:port`.
    pub async fn start(host: &str, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = (host.to_owned(), port);
        let passing_tx = Arc::new(watch::Sender::new(true));
        let passing_rx = passing_tx.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, target.clone(), passing_rx.clone()));
            }
        });
        Self {
            address,
            passing_tx,
        }
    }

    /// The port on 127.0.0.1 that it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Drops every connection and refuses new ones.
    pub fn cut(&self) {
        self.passing_tx.send_replace(false);
    }

    /// Takes connections again.
    pub fn mend(&self) {
        self.passing_tx.send_replace(true);
    }
}

async fn pass(mut client: TcpStream, target: (String, u16), mut passing_rx: watch::Receiver<bool>) {
    if !*passing_rx.borrow_and_update() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = passing_rx.wait_for(|passing| !passing) => {}
    }
}
