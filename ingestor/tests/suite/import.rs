//! `ingestor import`: each order of a file exactly once, whatever happens. It needs no Kafka.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Child;

use diesel::connection::SimpleConnection;
use rustix::process::{Pid, Signal, kill_process};
use shared::db::rights::Role;
use shared::order::Order;
use shared::testing::{
    InvalidKind, OrderGenerator, TestDatabase, model_json, variables_of, wait_until,
};

use crate::support::{Answer, PATIENCE, Scene, command};

const SMALL_BATCHES: (&str, &str) = ("BATCH_MAX_RECORDS", "10");
const SLOW: (&str, &str) = ("FAILPOINTS", "committed=sleep(200)");
const AUDIT: &str = "
    CREATE TABLE audit (uid text, transaction text);
    CREATE FUNCTION audit_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO audit VALUES (NEW.order_uid, NEW.payment_transaction);
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit AFTER INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION audit_order();";

/// A database, a folder of files, and no Kafka.
struct Bench {
    database: TestDatabase,
    folder: PathBuf,
    generator: OrderGenerator,
}

impl Bench {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("import-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&folder).unwrap();
        let database = TestDatabase::create();
        database.execute(AUDIT);
        Self {
            database,
            folder,
            generator: OrderGenerator::new(7, "2026-01-01T00:00:00Z".parse().unwrap()),
        }
    }

    fn orders(&mut self, count: usize) -> Vec<Order> {
        (0..count).map(|_| self.generator.next_order()).collect()
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let file = self.folder.join(name);
        fs::write(&file, content).unwrap();
        file
    }

    fn command(
        &self,
        file: &Path,
        more: &[&str],
        variables: &[(&str, &str)],
    ) -> std::process::Command {
        let mut environment = variables_of(&self.database.settings_as(Role::Ingestor));
        let kafka = [
            ("KAFKA_BROKERS", "127.0.0.1:1"),
            ("KAFKA_GROUP_ID", "group"),
        ];
        for (name, value) in kafka.iter().chain(variables) {
            environment.push(((*name).to_owned(), (*value).to_owned()));
        }
        let mut arguments = vec!["import", file.to_str().unwrap()];
        arguments.extend(more);
        command(&arguments, &environment)
    }

    fn import(&self, file: &Path, more: &[&str], variables: &[(&str, &str)]) -> Answer {
        self.command(file, more, variables).output().unwrap().into()
    }

    /// Imports a file whose orders are all accepted, and returns what was printed.
    fn import_well(&self, file: &Path, more: &[&str]) -> String {
        let answer = self.import(file, more, &[]);
        assert!(answer.success, "{answer:?}");
        answer.stdout
    }

    fn import_stdin(&self, file: &Path) -> Answer {
        let mut command = self.command(Path::new("-"), &[], &[]);
        command
            .stdin(File::open(file).unwrap())
            .output()
            .unwrap()
            .into()
    }

    /// Starts a slow import, and waits until it has stored something.
    fn start_slowly(&self, file: &Path) -> Child {
        let mut command = self.command(file, &[], &[SMALL_BATCHES, SLOW]);
        let child = command.spawn().unwrap();
        wait_until("a batch is stored", PATIENCE, || self.stored() > 0);
        child
    }

    fn stored(&self) -> i64 {
        self.database
            .integer("SELECT count(*) AS value FROM orders")
    }

    /// What was written, in its order.
    fn written(&self) -> Vec<String> {
        self.database.texts("SELECT uid AS value FROM audit")
    }

    fn rows(&self) -> Vec<String> {
        self.database.texts(
            "SELECT concat_ws(' ', group_id, left(topic, 7), length(topic), partition, next_offset) AS value
               FROM consumer_offsets ORDER BY partition, next_offset",
        )
    }

    fn assert_each_written_once(&self, orders: &[Order]) {
        let uids: Vec<String> = orders
            .iter()
            .map(|order| order.order_uid.to_string())
            .collect();
        assert_eq!(self.written(), uids);
        let sources = "SELECT count(*) AS value FROM orders
            WHERE num_nonnulls(source_partition, source_incarnation, source_offset) > 0";
        assert_eq!(self.database.integer(sources), 0);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

fn lines(orders: &[Order]) -> String {
    orders.iter().map(|order| line(order) + "\n").collect()
}

fn line(order: &Order) -> String {
    serde_json::to_string(order).unwrap()
}

fn finish(child: Child) -> Answer {
    child.wait_with_output().unwrap().into()
}

#[test]
fn an_import_that_is_killed_anywhere_continues_and_stores_each_order_once() {
    let mut bench = Bench::new();
    let orders = bench.orders(95);
    let file = bench.write("orders.ndjson", &lines(&orders));
    for (failpoint, stored) in [
        ("before_commit=return(kill)", 0),
        ("before_commit=2*off->return(kill)", 20),
        ("committed=return(kill)", 30),
        ("committed=2*off->return(kill)", 60),
        ("before_commit=3*off->return(kill)", 90),
    ] {
        let mut killed = bench.command(&file, &[], &[SMALL_BATCHES, ("FAILPOINTS", failpoint)]);
        let status = killed.output().unwrap().status;
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{status}");
        assert_eq!(bench.stored(), stored, "{failpoint}");
    }
    let answer = bench.import(&file, &[], &[]);
    assert!(answer.success, "{answer:?}");
    assert!(
        answer.stderr.contains("continuing at order 90"),
        "{answer:?}"
    );
    assert_eq!(
        answer.stdout,
        "orders: 95, stored: 5, kept: 0, deleted or erased: 0, refused: 0, imported before: 90\n"
    );
    bench.assert_each_written_once(&orders);
    assert_eq!(bench.rows(), ["group import: 71 0 95"]);

    for again in [bench.import(&file, &[], &[]), bench.import_stdin(&file)] {
        assert!(again.success && again.stdout.contains("imported before: 95\n"));
        assert!(again.stdout.contains("nothing was changed"), "{again:?}");
    }
    bench.assert_each_written_once(&orders);
}

#[test]
fn of_two_imports_of_one_file_the_first_is_fenced() {
    let mut bench = Bench::new();
    let orders = bench.orders(100);
    let file = bench.write("orders.ndjson", &lines(&orders));
    let first = bench.start_slowly(&file);
    let second = bench.import(&file, &[], &[SMALL_BATCHES]);
    assert!(second.success, "{second:?}");
    let first = finish(first);
    assert!(
        !first.success
            && first
                .stderr
                .contains("another import of the same file has taken over"),
        "{first:?}"
    );
    bench.assert_each_written_once(&orders);
}

#[test]
fn an_import_survives_lost_connections_and_ends_cleanly_when_it_is_interrupted() {
    let mut bench = Bench::new();
    let orders = bench.orders(100);
    let file = bench.write("orders.ndjson", &lines(&orders));
    let child = bench.start_slowly(&file);
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'orders-ingestor'";
    bench.database.execute(kill);
    let stored = bench.stored();
    wait_until("it continues", PATIENCE, || bench.stored() > stored);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let interrupted = finish(child);
    assert!(
        !interrupted.success
            && interrupted
                .stderr
                .contains("repeat the command, and it continues"),
        "{interrupted:?}"
    );
    assert!(bench.stored() < 100);
    bench.import_well(&file, &[]);
    bench.assert_each_written_once(&orders);
}

#[test]
fn orders_that_exist_are_kept_or_replaced_and_every_write_is_announced() {
    let mut bench = Bench::new();
    let first = bench.generator.order_with_uid("x");
    bench.import_well(&bench.write("first", &line(&first)), &[]);
    let mut versions = |uid: &str| [(); 2].map(|()| bench.generator.order_with_uid(uid));
    let (x, y) = (versions("x"), versions("y"));
    let all = [&x[0], &y[0], &x[1], &y[1]].map(Clone::clone);
    let file = bench.write("second", &lines(&all));
    let stored = || {
        bench.database.texts(
            "SELECT order_uid || ' ' || track_number AS value FROM orders ORDER BY order_uid",
        )
    };
    let both = |x: &Order, y: &Order| {
        [
            format!("x {}", x.track_number),
            format!("y {}", y.track_number),
        ]
    };

    let kept = bench.import_well(&file, &[]);
    assert!(kept.contains("stored: 1, kept: 3,"), "{kept}");
    assert_eq!(stored(), both(&first, &y[0]));
    let mut listener = bench.database.connect();
    listener.batch_execute("LISTEN order_events").unwrap();
    // An import that replaces is another import. The last order of a uid wins, as in a topic.
    let replaced = bench.import_well(&file, &["--replace"]);
    assert!(replaced.contains("stored: 4, kept: 0,"), "{replaced}");
    assert_eq!(stored(), both(&x[1], &y[1]));
    listener.batch_execute("SELECT").unwrap();
    let events: Vec<String> = listener
        .notifications_iter()
        .map(|event| event.unwrap().payload)
        .collect();
    assert!(
        events
            .iter()
            .any(|event| event.contains("\"x\"") && event.contains("\"y\"")),
        "{events:?}"
    );
    let again = bench.import_well(&file, &["--replace"]);
    assert!(again.contains("nothing was changed"), "{again}");
    assert_eq!(bench.written(), ["x", "y", "x", "y"]);
    assert_eq!(bench.rows().len(), 3);
}

#[test]
fn what_was_deleted_or_erased_stays_away() {
    let mut bench = Bench::new();
    let mut orders = bench.orders(5);
    for index in [2, 3] {
        orders[index].customer_id = "erased-customer".into();
    }
    bench.import_well(&bench.write("first", &lines(&orders)), &[]);
    let deleted = orders[0].order_uid.as_str();
    bench.database.execute(&format!(
        "DELETE FROM orders WHERE order_uid = '{deleted}';
         SELECT record_removed('order', ARRAY['{deleted}'], 'deleted')"
    ));
    let erase = ["erase", "--customer", "erased-customer", "--yes"];
    let environment = variables_of(&bench.database.settings_as(Role::Migrator));
    let erased = command(&erase, &environment).output().unwrap();
    assert!(erased.status.success(), "{erased:?}");
    assert_eq!(bench.stored(), 2);
    // An order that exists must not get the erased values either.
    orders[4].customer_id = "erased-customer".into();
    let file = bench.write("second", &lines(&orders));
    for (more, counts) in [
        (&[][..], "stored: 0, kept: 2, deleted or erased: 3,"),
        (&["--replace"], "stored: 1, kept: 0, deleted or erased: 4,"),
    ] {
        let printed = bench.import_well(&file, more);
        assert!(printed.contains(counts), "{printed}");
        assert_eq!(bench.stored(), 2);
    }
    let of_erased = "SELECT count(*) AS value FROM orders WHERE customer_id = 'erased-customer'";
    assert_eq!(bench.database.integer(of_erased), 0);
}

#[test]
fn refused_orders_are_reported_and_passed_over_and_are_no_dead_letters() {
    let mut bench = Bench::new();
    bench
        .database
        .execute("ALTER TABLE orders ADD CONSTRAINT orders_no_evil CHECK (track_number <> 'EVIL')");
    let mut orders = bench.orders(24);
    orders[1].track_number = "EVIL".into();
    orders[22].track_number = "EVIL".into();
    let (bad, _) = InvalidKind::WrongNumber.of(&orders[3]);
    let bad = String::from_utf8(bad).unwrap();
    let file = bench.write("orders", &format!("{}\nnope\n{bad}\n", lines(&orders)));
    let price = "/items/0/price: must be an integer in 0..=9007199254740991, not negative";
    let by_reading = [
        "line 26: refused: not_json: expected ident at line 1 column 2".to_owned(),
        format!("line 27: refused: invalid_order: {price}"),
    ];
    let by_database = |number| {
        format!(
            "line {number}: refused: refused_by_database: constraint orders_no_evil of table orders rejects it"
        )
    };
    let answer = bench.import(&file, &[], &[SMALL_BATCHES]);
    assert!(!answer.success);
    assert!(
        answer.stderr.contains("4 of 26 orders are refused"),
        "{answer:?}"
    );
    let mut printed: Vec<&str> = answer.stdout.lines().collect();
    let summary = printed.pop().unwrap();
    assert!(
        summary.starts_with("orders: 26, stored: 22, kept: 0,"),
        "{summary}"
    );
    printed.sort_unstable();
    let mut expected = [&by_reading[..], &[by_database(2), by_database(23)]].concat();
    expected.sort();
    assert_eq!(printed, expected);
    assert_eq!(bench.stored(), 22);
    assert_eq!(
        bench
            .database
            .integer("SELECT count(*) AS value FROM dead_letters"),
        0
    );

    let again = bench.import(&file, &[], &[]);
    assert!(
        !again.success && again.stdout.starts_with(&by_reading.join("\n")),
        "{again:?}"
    );
    assert!(again.stdout.contains("nothing was changed"), "{again:?}");
    assert_eq!(bench.written().len(), 22);
}

#[test]
fn a_file_of_which_nothing_is_accepted_can_be_imported_with_the_right_settings() {
    let mut bench = Bench::new();
    let orders = bench.orders(3);
    let enveloped = |order: &Order| format!("{{\"payload\":{}}}\n", line(order));
    let content: String = orders.iter().map(enveloped).collect();
    let file = bench.write("orders", &content);
    let wrong = bench.import(&file, &[], &[]);
    assert!(
        !wrong.success && wrong.stdout.contains("refused: 3,"),
        "{wrong:?}"
    );
    let right = bench.import(&file, &[], &[("KAFKA_VALUE_ENVELOPE", "connect")]);
    assert!(
        right.success && right.stdout.contains("stored: 3, "),
        "{right:?}"
    );
}

#[test]
fn arrays_lines_and_one_order_are_imported_from_files_and_from_standard_input() {
    let mut bench = Bench::new();
    let orders = bench.orders(4);
    let forms = [
        format!("\n{}\n\n{}\r\n", line(&orders[0]), line(&orders[1])),
        format!("[{},\n{}]\n", line(&orders[2]), line(&orders[3])),
        model_json().to_owned(),
    ];
    for (form, stored) in forms.iter().zip([2, 4, 5]) {
        let file = bench.write("orders", form);
        let answer = bench.import_stdin(&file);
        assert!(answer.success, "{answer:?}");
        assert_eq!(bench.stored(), stored);
        let again = bench.import_well(&file, &[]);
        assert!(again.contains("nothing was changed"), "{again}");
    }
}

#[test]
fn what_is_no_file_of_orders_is_a_clear_error() {
    let bench = Bench::new();
    let empty = bench.write("empty", "");
    let blank = bench.write("blank", "\n \n");
    let nothing = bench.write("array", "[]");
    let broken = bench.write("broken", "[{}, {\n");
    for (file, message) in [
        (&empty, "there is no order in the file"),
        (&blank, "there is no order in the file"),
        (&nothing, "there is no order in the file"),
        (&broken, "not a JSON array"),
        (&bench.folder, "is a directory: name a file"),
        (&bench.folder.join("missing"), "cannot open"),
    ] {
        let answer = bench.import(file, &[], &[]);
        assert!(!answer.success, "{answer:?}");
        assert!(
            answer.stderr.contains(message) && answer.stderr.contains(file.to_str().unwrap()),
            "{answer:?}"
        );
    }
    assert_eq!(bench.stored(), 0);
}

/// The saved inputs of the fuzz target, and inputs of every kind of fault. Each in one line.
fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/order");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 6, "{files:?}");
    let mut inputs: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let mut generator = OrderGenerator::new(3, "2026-01-01T00:00:00Z".parse().unwrap());
    for kind in InvalidKind::ALL {
        inputs.push(kind.of(&generator.next_order()).0);
    }
    let model: serde_json::Value = serde_json::from_str(model_json()).unwrap();
    let pointers = pointers_of(&model);
    let values = serde_json::json!([
        null,
        true,
        0,
        -1,
        1.5,
        1e300,
        9_007_199_254_740_992_i64,
        "",
        " ",
        "a\u{0}b",
        "x".repeat(300),
        "2021-11-26T06:22:19Z",
        "2021-13-26T06:22:19Z",
        [],
        {},
        [null]
    ]);
    for pointer in &pointers {
        for value in values.as_array().unwrap() {
            let mut document = model.clone();
            *document.pointer_mut(pointer).unwrap() = value.clone();
            inputs.push(document.to_string().into_bytes());
        }
        let mut document = model.clone();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        if let Some(object) = document.pointer_mut(parent).unwrap().as_object_mut() {
            object.remove(field);
            inputs.push(document.to_string().into_bytes());
        }
    }
    let text = model.to_string();
    let cuts = [1, 20, text.len() / 2, text.len() - 1].map(|end| text.as_bytes()[..end].to_vec());
    inputs.extend(cuts);
    inputs.extend([
        format!("{text}{text}").into_bytes(),
        format!(" {text}\t\r").into_bytes(),
        format!("\u{feff}{text}").into_bytes(),
        [text.as_bytes(), &[b' '; 300_000]].concat(),
        text.replace("\"price\":453", "\"price\":453,\"price\":454")
            .into_bytes(),
        text.replace("Test Testov", "\\ud800").into_bytes(),
        [text.replace("Test", "\u{1}").as_bytes(), b"\xff"].concat(),
        b"\"text\"".to_vec(),
        b"17".to_vec(),
        b"null".to_vec(),
        b"\xff\xfe".to_vec(),
        "[".repeat(200).into_bytes(),
    ]);
    for input in &mut inputs {
        input
            .iter_mut()
            .filter(|byte| **byte == b'\n')
            .for_each(|byte| *byte = b' ');
    }
    inputs
}

/// Every value within the document.
fn pointers_of(value: &serde_json::Value) -> Vec<String> {
    let children: Vec<(String, &serde_json::Value)> = match value {
        serde_json::Value::Object(members) => members
            .iter()
            .map(|(name, value)| (format!("/{name}"), value))
            .collect(),
        serde_json::Value::Array(elements) => elements
            .iter()
            .enumerate()
            .map(|(index, value)| (format!("/{index}"), value))
            .collect(),
        _ => Vec::new(),
    };
    children
        .into_iter()
        .flat_map(|(path, value)| {
            let below = pointers_of(value);
            let below = below.into_iter().map(|pointer| path.clone() + &pointer);
            [path.clone()].into_iter().chain(below.collect::<Vec<_>>())
        })
        .collect()
}

/// The number and the reason of each refusal among printed lines.
fn refusals(printed: &str) -> Vec<(usize, String)> {
    printed
        .lines()
        .filter_map(|line| {
            let (place, reason) = line.strip_prefix("line ")?.split_once(": refused: ")?;
            Some((place.parse().ok()?, reason.to_owned()))
        })
        .collect()
}

fn assert_agree(left: &[(usize, String)], right: &[(usize, String)]) {
    let first = left.iter().zip(right).find(|(left, right)| left != right);
    assert_eq!(first, None);
    assert_eq!(left.len(), right.len());
}

/// Whether the two databases have the same orders in all that a message says.
const CONTENT: &str =
    "SELECT (to_jsonb(orders) - 'created_at' - 'updated_at' - 'version' - 'source_partition'
        - 'source_incarnation' - 'source_offset')::text AS value FROM orders ORDER BY order_uid";

#[test]
fn check_import_and_daemon_agree_on_every_input() {
    let inputs = corpus();
    assert!(inputs.len() > 500, "{}", inputs.len());
    let bench = Bench::new();
    // A first line that is an order of one line, so that none of the inputs begins a document.
    let mut content = b"{}\n".to_vec();
    for input in &inputs {
        content.extend_from_slice(input);
        content.push(b'\n');
    }
    let file = bench.folder.join("inputs");
    fs::write(&file, &content).unwrap();
    let checked: Answer = command(&["check", file.to_str().unwrap()], &[])
        .output()
        .unwrap()
        .into();
    let imported = bench.import(&file, &["--replace"], &[]);
    let checked = refusals(&checked.stdout);
    assert_agree(&checked, &refusals(&imported.stdout));

    let scene = Scene::new(1);
    scene.send(None, Some(b"{}"));
    for input in &inputs {
        scene.send(None, Some(input));
    }
    scene.flush();
    let daemon = scene.start_daemon_with(&[("DEAD_LETTER_MAX_CONSECUTIVE", "1000000")]);
    scene.wait_until_settled(i64::try_from(inputs.len() + 1).unwrap());
    assert!(daemon.stop().success());
    let letters = scene.database.texts(
        "SELECT format('line %s: refused: %s: %s', \"offset\" + 1, reason, detail) AS value FROM dead_letters
          ORDER BY \"offset\"",
    );
    assert_agree(&checked, &refusals(&letters.join("\n")));
    let accepted = inputs.len() + 1 - checked.len();
    assert!(
        accepted > 100 && checked.len() > 200,
        "{accepted} {}",
        checked.len()
    );
    assert!(bench.stored() > 0);
    assert_eq!(bench.database.texts(CONTENT), scene.database.texts(CONTENT));
}
