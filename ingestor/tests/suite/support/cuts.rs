//! Cuts connections to the database at given bytes, in one batch after another.

use shared::config::DatabaseSettings;
use shared::testing::wait_until;

use super::postgres_proxy::{Lengths, PostgresProxy, Strike};
use super::{Daemon, Load, PATIENCE, Scene};

/// A daemon that reaches its database through a proxy.
pub struct CutScene {
    scene: Scene,
    load: Load,
    proxy: PostgresProxy,
    daemon: Daemon,
}

impl CutScene {
    pub fn start() -> Self {
        let scene = Scene::new(1);
        let load = Load::new(&scene);
        let DatabaseSettings { host, port, .. } = scene.database.settings();
        let proxy = PostgresProxy::start(&host, port);
        let proxy_port = proxy.port().to_string();
        let daemon = scene.start_daemon_with(&[("DB_HOST", "127.0.0.1"), ("DB_PORT", &proxy_port)]);
        let mut this = Self {
            scene,
            load,
            proxy,
            daemon,
        };
        this.store_a_batch();
        this
    }

    /// The lengths of the parts of the last batch's transaction.
    pub fn lengths(&self) -> Lengths {
        self.proxy.lengths()
    }

    /// Cuts once in the next batch, of which nothing may be lost or stored twice.
    pub fn cut(&mut self, strike: Strike) {
        self.proxy.arm(strike);
        self.store_a_batch();
        assert!(self.proxy.has_struck(), "{strike:?} met no transaction");
        let found = self.load.check(&self.scene);
        assert!(found.is_empty(), "{strike:?}: {found:#?}");
    }

    fn store_a_batch(&mut self) {
        self.load.produce_one_of_each();
        let all = i64::try_from(self.load.acknowledged()).unwrap();
        wait_until("the batch is settled", PATIENCE, || {
            self.scene.settled() == all
        });
    }

    pub fn finish(self) {
        let Self { daemon, .. } = self;
        assert!(daemon.stop().success());
    }
}
