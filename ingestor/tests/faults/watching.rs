//! The shipped rules, dashboards and runbook against the running programs, judged by a real Prometheus.
//!
//! The programs run at their usual pace. Only the rules run faster, so that an alert fires and ends within a minute: see
//! [`shipped::rules`].

mod judge;
mod shipped;
mod traffic;

use std::process::Command;

use api::Listeners;
use api::config::{Cli, Config};
use diesel::connection::SimpleConnection;
use rustix::process::Signal;
use servers::kafka::PrivateKafka;
use servers::postgres::{Options, PrivatePostgres};
use servers::process::Launch;
use servers::prometheus::find_promtool;
use shared::config::DatabaseSettings;
use shared::db::rights::Role;
use shared::testing::{TcpProxy, TestDatabase, parse_arguments, settings_of, wait_until};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::support::{Daemon, PATIENCE, Scene};
use judge::Judge;
use traffic::Traffic;

/// How many times as fast as shipped the rules run.
const FACTOR: f64 = 60.0;
/// The programs measure the lag every 5 s. A shorter window would not see two measurements.
const SHORTEST_WINDOW_S: f64 = 12.0;

/// Queries that return nothing while all is well, and why.
const EMPTY_WHEN_HEALTHY: [(&str, &str); 2] = [
    ("ALERTS{alertname=~\"Orders.*\"}", "no alert is active"),
    ("status=~\"5..\"", "no request has failed"),
];

/// Every alert that is made to fire here. The others are tested with made-up series only (`rules_test.yml`).
const MADE_TO_FIRE: [&str; 17] = [
    "OrdersApisDown",
    "OrdersCacheBudgetBurnsFast",
    "OrdersDatabaseRefuses",
    "OrdersDatabaseUnreachable",
    "OrdersDeadLetterFlood",
    "OrdersDeadLetters",
    "OrdersIngestorsDown",
    "OrdersKafkaUnreachable",
    "OrdersLagGrows",
    "OrdersListenerBlind",
    "OrdersLoadsFail",
    "OrdersMalformedEvents",
    "OrdersNotifyQueueFills",
    "OrdersPartitionStopped",
    "OrdersRequestBudgetBurnsFast",
    "OrdersStorageBudgetBurnsFast",
    "OrdersTargetDown",
];

#[test]
fn every_query_has_data_and_each_fault_raises_its_alerts_until_it_is_over() {
    let mut stage = Stage::start();
    stage.assert_both_formats_are_valid();
    stage.wait_until_every_query_has_data();
    stage.run_the_runbook();
    // The start itself has used some of the budgets.
    stage.judge.wait_until_quiet();

    stage.refused_messages();
    stage.notification_that_nobody_understands();
    stage.listener_that_hears_nothing();
    stage.full_notification_queue();
    stage.judge.wait_until_over(&["OrdersMalformedEvents"]);
    stage.locked_row();
    stage.revoked_right();
    stage.frozen_ingestor();
    stage.database_away();
    stage.recreated_topic();
    stage.brokers_away();
    stage.api_away();
    let fired: Vec<&str> = stage.judge.fired().iter().map(String::as_str).collect();
    assert_eq!(fired, MADE_TO_FIRE);
}

/// The servers, the programs, some traffic, and who watches them.
struct Stage {
    // It is dropped first, because it uses the others.
    _traffic: Traffic,
    judge: Judge,
    daemon: Daemon,
    api: Api,
    proxy: TcpProxy,
    scene: Scene,
    // The api and the proxy run on it.
    _runtime: Runtime,
    kafka: PrivateKafka,
    postgres: PrivatePostgres,
}

/// An api in this process.
struct Api {
    port: u16,
    ops_port: u16,
    shutdown: CancellationToken,
}

impl Api {
    fn start(runtime: &Runtime, database: DatabaseSettings) -> Self {
        let bind = || runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let (clients, operators) = (bind(), bind());
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let api = Self {
            port: port(&clients),
            ops_port: port(&operators),
            shutdown: CancellationToken::new(),
        };
        let cli = parse_arguments::<Cli>(&["--shutdown-timeout-ms=1000"]).unwrap();
        let config = Config {
            database,
            ..cli.config().unwrap()
        };
        let listeners = Listeners {
            clients,
            operators: Some(operators),
        };
        runtime.spawn(api::run(config, listeners, api.shutdown.clone()));
        api
    }
}

impl Stage {
    fn start() -> Self {
        let postgres = PrivatePostgres::start(&Options::default()).unwrap();
        let kafka = PrivateKafka::start(None).unwrap();
        let database = TestDatabase::create_on(settings_of(&postgres));
        let scene = Scene::with_servers(1, database, kafka.bootstrap(), &[]);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let database = scene.database.settings_as(Role::Api);
        let proxy = runtime.block_on(TcpProxy::start(&database.host, database.port));
        let through_proxy = DatabaseSettings {
            host: "127.0.0.1".to_owned(),
            port: proxy.port(),
            ..database
        };
        let api = Api::start(&runtime, through_proxy);
        let daemon = scene.start_daemon();
        let rules = shipped::rules(FACTOR, SHORTEST_WINDOW_S);
        Self {
            _traffic: Traffic::start(&scene, api.port),
            judge: Judge::start(&rules, daemon.port(), api.ops_port),
            daemon,
            api,
            proxy,
            scene,
            _runtime: runtime,
            kafka,
            postgres,
        }
    }

    /// Prometheus itself reads OpenMetrics, which the test of the queries shows.
    fn assert_both_formats_are_valid(&self) {
        for port in [self.daemon.port(), self.api.ops_port] {
            let request = minreq::get(format!("http://127.0.0.1:{port}/metrics"));
            let old_scraper = "text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
            let mut answer = None;
            wait_until("the program answers", PATIENCE, || {
                let request = request.clone().with_header("accept", old_scraper);
                answer = request.with_timeout(5).send().ok();
                answer.is_some()
            });
            let answer = answer.unwrap();
            let format = answer.header("content-type");
            assert_eq!(format, Some("text/plain; version=0.0.4; charset=utf-8"));
            let promtool = Launch::new("promtool", find_promtool().unwrap());
            let text = answer.as_str().unwrap();
            promtool.args(["check", "metrics"]).output_of(text).unwrap();
        }
    }

    /// Every panel shows something. Of every rule, each selector finds series; most alerts compare them with something that is
    /// not so while all is well.
    fn wait_until_every_query_has_data(&self) {
        let rules = self.judge.rules().into_iter();
        let of_rules = rules.flat_map(|(name, query)| {
            let selectors = shipped::selectors(&query).into_iter();
            selectors.map(move |selector| (name.clone(), selector))
        });
        let window = format!("[{SHORTEST_WINDOW_S}s]");
        let of_panels = shipped::panel_queries().into_iter().map(|panel| {
            let query = panel.query.replace("[$__rate_interval]", &window);
            (panel.place, query.replace("$instance", ".*"))
        });
        let of_runbook = shipped::runbook("promql").into_iter();
        for query in of_runbook {
            assert!(
                self.judge.ask(&query).is_ok(),
                "{:?}",
                self.judge.ask(&query)
            );
        }
        let mut count = 0;
        for (place, query) in of_rules.chain(of_panels) {
            count += 1;
            let may_be_empty = EMPTY_WHEN_HEALTHY
                .iter()
                .any(|(part, _)| query.contains(part));
            wait_until(&format!("{place} has data: {query}"), PATIENCE, || {
                let series = self
                    .judge
                    .ask(&query)
                    .unwrap_or_else(|error| panic!("{place}: {query}: {error}"));
                may_be_empty || !series.is_empty()
            });
        }
        self.judge.say(&format!("{count} queries have data"));
    }

    /// Every command of the runbook that only looks works as it is written.
    fn run_the_runbook(&self) {
        let log = std::env::temp_dir().join(format!("runbook-{}.log", std::process::id()));
        std::fs::write(&log, self.daemon.log()).unwrap();
        let DatabaseSettings {
            host,
            port,
            user,
            password,
            name,
            ..
        } = self.scene.database.settings();
        let setup = format!(
            "INGESTOR=http://127.0.0.1:{} API=http://127.0.0.1:{} PROMETHEUS={}\n\
             ingestor() {{ '{}' \"$@\"; }}\n\
             database() {{ psql -v ON_ERROR_STOP=1 -h {host} -p {port} -U {user} -d {name} \"$@\"; }}\n\
             logs() {{ cat '{}'; }}\n",
            self.daemon.port(),
            self.api.port,
            self.judge.url(),
            env!("CARGO_BIN_EXE_ingestor"),
            log.display(),
        );
        let of_sql = shipped::runbook("sql").into_iter();
        let of_sql = of_sql.map(|statements| format!("database <<'END'\n{statements}END\n"));
        let mut count = 0;
        for commands in shipped::runbook("sh").into_iter().chain(of_sql) {
            count += 1;
            let output = Command::new("bash")
                .args(["-u", "-c", &format!("{setup}{commands}")])
                .envs(self.scene.environment())
                .env("PGPASSWORD", password.expose())
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            let is_well = output.status.success()
                && !["not found", "rror:", "unbound"]
                    .iter()
                    .any(|bad| stderr.contains(bad));
            assert!(is_well, "{commands}: {}\n{stderr}", output.status);
        }
        std::fs::remove_file(log).ok();
        self.judge
            .say(&format!("{count} blocks of the runbook work"));
    }

    fn refused_messages(&mut self) {
        self.judge.say("500 messages are no orders");
        for _ in 0..500 {
            self.scene.send(None, Some(&b"not an order"[..]));
        }
        self.scene.flush();
        self.judge
            .wait_until_fired(&["OrdersDeadLetters", "OrdersDeadLetterFlood"]);
        self.judge
            .wait_until_over(&["OrdersDeadLetters", "OrdersDeadLetterFlood"]);
    }

    fn listener_that_hears_nothing(&mut self) {
        self.judge.say("nothing passes on the api's connections");
        self.proxy.hold();
        let alerts = ["OrdersListenerBlind", "OrdersCacheBudgetBurnsFast"];
        self.judge.wait_until_fired(&alerts);
        self.proxy.mend();
        self.judge.wait_until_over(&alerts);
    }

    fn notification_that_nobody_understands(&mut self) {
        self.judge.say("somebody sends a notification of his own");
        self.scene
            .database
            .execute("NOTIFY order_events, 'what is this?'");
        self.judge.wait_until_fired(&["OrdersMalformedEvents"]);
    }

    /// The queue holds 8 GB. What the rule looks for, a twentieth, is half a gigabyte.
    fn full_notification_queue(&mut self) {
        self.judge
            .say("a session that listens keeps a transaction open");
        let mut listener = self.scene.database.connect();
        // Sent separately: statements sent together are one transaction, and LISTEN takes effect at its commit.
        for statement in [
            "SET idle_in_transaction_session_timeout = 0",
            "LISTEN watching_test",
            "BEGIN",
            "SELECT 1",
        ] {
            listener.batch_execute(statement).unwrap();
        }
        // The payloads differ, because equal ones are sent only once.
        while self.notify_queue_usage() < 0.06 {
            self.scene.database.execute(
                "SELECT pg_notify('watching_test', repeat('x', 7900) || row) FROM generate_series(1, 5000) AS row",
            );
        }
        self.judge.wait_until_fired(&["OrdersNotifyQueueFills"]);
        listener.batch_execute("ROLLBACK").unwrap();
        self.judge.wait_until_over(&["OrdersNotifyQueueFills"]);
    }

    fn notify_queue_usage(&self) -> f64 {
        let usage = "SELECT pg_notification_queue_usage()::text AS value";
        self.scene.database.texts(usage)[0].parse().unwrap()
    }

    fn locked_row(&mut self) {
        self.judge
            .say("a person's session locks the row of the partition");
        let mut holder = self.scene.lock_row_of_partition_0();
        let alerts = [
            "OrdersDatabaseRefuses",
            "OrdersLagGrows",
            "OrdersStorageBudgetBurnsFast",
        ];
        self.judge.wait_until_fired(&alerts);
        holder.batch_execute("ROLLBACK").unwrap();
        self.judge.wait_until_over(&alerts);
    }

    fn revoked_right(&mut self) {
        self.judge
            .say("a right to the table of the orders is revoked");
        let change = |statement: &str| self.scene.database.execute(statement);
        change("REVOKE SELECT ON orders FROM orders_api");
        // What is cached would still be answered.
        let cache = format!("http://127.0.0.1:{}/api/v1/cache", self.api.port);
        let dropped = minreq::delete(cache).send().unwrap();
        assert_eq!(dropped.status_code, 204);
        let alerts = ["OrdersLoadsFail", "OrdersRequestBudgetBurnsFast"];
        self.judge.wait_until_fired(&alerts);
        change("GRANT SELECT ON orders TO orders_api");
        self.judge.wait_until_over(&alerts);
    }

    fn frozen_ingestor(&mut self) {
        self.judge.say("the ingestor is frozen");
        self.daemon.signal(Signal::STOP);
        let alerts = ["OrdersIngestorsDown", "OrdersTargetDown"];
        self.judge.wait_until_fired(&alerts);
        self.daemon.signal(Signal::CONT);
        self.judge.wait_until_over(&alerts);
    }

    fn database_away(&mut self) {
        self.judge.say("PostgreSQL is stopped");
        self.postgres.stop().unwrap();
        let alerts = ["OrdersDatabaseUnreachable", "OrdersListenerBlind"];
        self.judge.wait_until_fired(&alerts);
        self.postgres.restart().unwrap();
        self.judge.wait_until_over(&alerts);
    }

    fn brokers_away(&mut self) {
        self.judge.say("Kafka is stopped");
        self.kafka.stop().unwrap();
        self.judge.wait_until_fired(&["OrdersKafkaUnreachable"]);
        self.kafka.restart().unwrap();
        self.judge.wait_until_over(&["OrdersKafkaUnreachable"]);
    }

    fn recreated_topic(&mut self) {
        self.judge.say("the topic is deleted and made anew");
        self.scene.recreate_topic(1);
        self.judge.wait_until_fired(&["OrdersPartitionStopped"]);
        self.scene.accept_gap(&["--new-topic"]);
        self.judge.wait_until_over(&["OrdersPartitionStopped"]);
    }

    fn api_away(&mut self) {
        self.judge.say("the api is stopped");
        self.api.shutdown.cancel();
        self.judge.wait_until_fired(&["OrdersApisDown"]);
    }
}
