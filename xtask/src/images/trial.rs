//! What the running containers must do.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use servers::interrupt::wait_for;
use servers::process::Launch;
use servers::{progress, project};

use super::build::PROGRAMS;
use super::system::System;
use super::watching;

/// The uid of the sample order, `shared/data/model.json`.
const SAMPLE_UID: &str = "b563feb7b2b84b6test";
/// Orders that are stored while their process is stopped and killed.
const ORDERS: u64 = 30_000;
/// How many more orders must be stored before the next interruption.
const BETWEEN: u64 = 2_000;
/// Three health checks fail, ten seconds apart.
const HEALTH_PATIENCE: Duration = Duration::from_secs(90);
/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// Each write of an order, so that one that is written twice is seen. The program's role has no right on the table.
const COUNT_WRITES: &str = "
    CREATE TABLE image_writes (order_uid text NOT NULL);
    CREATE FUNCTION image_count_write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$ BEGIN
        INSERT INTO public.image_writes VALUES (NEW.order_uid);
        RETURN NULL;
    END $$;
    CREATE TRIGGER image_count_write AFTER INSERT OR UPDATE ON orders
        FOR EACH ROW EXECUTE FUNCTION image_count_write();";

/// Starts the containers, tries them, and removes them.
pub(super) fn run(system: &System<'_>) -> Result<()> {
    let outcome = system.up().and_then(|()| {
        system.psql(COUNT_WRITES)?;
        check_confinement(system)?;
        send_sample(system)?;
        check_health(system)?;
        watching::check(system)?;
        interrupt_ingestion(system)?;
        stop_api(system)?;
        check_ends(system)?;
        check_logs(system)
    });
    let down = system.down();
    outcome.and(down)
}

/// Asks the kernel what the programs may do.
fn check_confinement(system: &System<'_>) -> Result<()> {
    for program in PROGRAMS {
        let pid = system.pid(program)?;
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let status = read("status")?;
        for (field, expected) in [
            ("Uid:", "10001"),
            ("Gid:", "10001"),
            ("CapEff:", "0000000000000000"),
            ("CapBnd:", "0000000000000000"),
            ("NoNewPrivs:", "1"),
            // A filter of system calls.
            ("Seccomp:", "2"),
        ] {
            let found = status
                .lines()
                .find_map(|line| line.strip_prefix(field)?.split_whitespace().next());
            ensure!(
                found == Some(expected),
                "{program} runs with {field} {found:?} instead of {expected}"
            );
        }
        let mounts = read("mounts")?;
        let root = mounts
            .lines()
            .find(|line| line.split(' ').nth(1) == Some("/"))
            .and_then(|line| line.split(' ').nth(3));
        ensure!(
            root.is_some_and(|options| options.split(',').any(|option| option == "ro")),
            "{program} may write to its file system: {root:?}"
        );
        let limit = system.inspect(program, "{{.HostConfig.Memory}}")?;
        let wanted = &system.model()["services"][program]["mem_limit"];
        ensure!(
            wanted.as_str().and_then(bytes_of) == limit.parse().ok() && limit != "0",
            "{program} has a memory limit of {limit} bytes instead of {wanted}"
        );
    }
    progress::step("both programs: user 10001, no capabilities, read-only, limited memory");
    Ok(())
}

/// Returns the bytes of a size such as `384m` or `1g`.
fn bytes_of(size: &str) -> Option<u64> {
    let (number, unit) = size.split_at_checked(size.len().checked_sub(1)?)?;
    let bytes_per_unit = match unit {
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(bytes_per_unit)
}

/// Sends the sample order to Kafka, and waits until the api answers with it.
fn send_sample(system: &System<'_>) -> Result<()> {
    system.produce(&sample()?)?;
    wait_for_sample(system)?;
    progress::step("the sample order went through Kafka, the ingestor, PostgreSQL and the api");
    Ok(())
}

fn wait_for_sample(system: &System<'_>) -> Result<()> {
    let url = system.url(&format!("/order/{SAMPLE_UID}"));
    wait_for(
        "the api does not answer with the sample order",
        PATIENCE,
        || {
            let answer = minreq::get(&url).with_timeout(5).send().ok();
            Ok(answer.filter(|answer| answer.status_code == 200))
        },
    )?;
    Ok(())
}

/// Freezes both programs until their containers are unhealthy, and lets them go on until they are healthy.
fn check_health(system: &System<'_>) -> Result<()> {
    const HEALTH: &str = "{{.State.Health.Status}}";
    for (signal, expected) in [("-STOP", "unhealthy"), ("-CONT", "healthy")] {
        for program in PROGRAMS {
            // Not by docker, which would not restart a container that has got a signal.
            send_signal(system.pid(program)?, signal)?;
        }
        for program in PROGRAMS {
            system.wait_until(program, HEALTH, expected, HEALTH_PATIENCE)?;
        }
        progress::step(&format!("after SIG{}: {expected}", &signal[1..]));
    }
    Ok(())
}

/// Stops the ingestor three times while it stores orders: in good order, by `docker kill`, and by a crash.
fn interrupt_ingestion(system: &System<'_>) -> Result<()> {
    let container = system.container("ingestor")?;
    let stored = || system.number("SELECT count(*) FROM orders");
    let docker = |arguments: &[&str]| {
        let launch = system.docker().args(arguments).arg(&container);
        launch.output_of("").map(drop)
    };
    docker(&["stop"])?;
    system.produce(&orders()?)?;
    progress::step(&format!("{ORDERS} orders wait in Kafka"));
    docker(&["start"])?;
    for interruption in ["docker stop", "docker kill", "a crash"] {
        let before = stored()?;
        let count = wait_for("no more orders are stored", PATIENCE, || {
            let now = stored()?;
            Ok((now >= before + BETWEEN).then_some(now))
        })?;
        ensure!(
            count < ORDERS,
            "all orders were stored before {interruption}: this test must send more of them"
        );
        let started = Instant::now();
        match interruption {
            "docker stop" => {
                docker(&["stop"])?;
                check_stopped(system, "ingestor", started.elapsed())?;
            }
            "docker kill" => docker(&["kill"])?,
            _ => {
                let restarts = system.inspect("ingestor", "{{.RestartCount}}")?;
                send_signal(system.pid("ingestor")?, "-KILL")?;
                wait_for("docker does not restart the ingestor", PATIENCE, || {
                    let now = system.inspect("ingestor", "{{.RestartCount}}")?;
                    Ok((now != restarts).then_some(()))
                })?;
            }
        }
        progress::step(&format!("{interruption} after {count} orders"));
        docker(&["start"])?;
    }
    check_orders(system)
}

/// Waits until all messages are settled, and counts what was written.
fn check_orders(system: &System<'_>) -> Result<()> {
    // The sample order is a message, too.
    let expected = ORDERS + 1;
    wait_for("not all messages are settled", PATIENCE, || {
        let settled = system.number("SELECT sum(next_offset) FROM consumer_offsets")?;
        Ok((settled == expected).then_some(()))
    })?;
    for (what, query) in [
        ("orders", "SELECT count(*) FROM orders"),
        ("writes of orders", "SELECT count(*) FROM image_writes"),
        (
            "orders written",
            "SELECT count(DISTINCT order_uid) FROM image_writes",
        ),
    ] {
        let found = system.number(query)?;
        ensure!(
            found == expected,
            "there are {found} {what} instead of {expected}"
        );
    }
    progress::step(&format!("each of {expected} orders was written once"));
    Ok(())
}

/// Stops and kills the api. It comes back and answers.
fn stop_api(system: &System<'_>) -> Result<()> {
    let container = system.container("api")?;
    for command in ["stop", "kill"] {
        let started = Instant::now();
        system
            .docker()
            .args([command, &container])
            .output_of("")
            .with_context(|| format!("docker {command} fails"))?;
        if command == "stop" {
            check_stopped(system, "api", started.elapsed())?;
        }
        system.docker().args(["start", &container]).output_of("")?;
        wait_for_sample(system)?;
        progress::step(&format!("the api answers again after `docker {command}`"));
    }
    Ok(())
}

/// Checks that a program has ended by itself, within the time that docker-compose.yaml gives it.
fn check_stopped(system: &System<'_>, program: &str, took: Duration) -> Result<()> {
    let code = system.inspect(program, "{{.State.ExitCode}}")?;
    let grace = &system.model()["services"][program]["stop_grace_period"];
    let seconds: u64 = grace
        .as_str()
        .and_then(|text| text.strip_suffix('s')?.parse().ok())
        .with_context(|| format!("{program}: stop_grace_period {grace} is not in seconds"))?;
    ensure!(
        code == "0" && took < Duration::from_secs(seconds),
        "{program} ended with {code} after {took:.1?}; it has {seconds} s"
    );
    progress::step(&format!("{program} stopped within {took:.1?}"));
    Ok(())
}

/// Checks that nothing ran out of memory, and that only what was crashed has crashed.
fn check_ends(system: &System<'_>) -> Result<()> {
    for program in PROGRAMS {
        let state = system.inspect(program, "{{.State.OOMKilled}} {{.State.Status}}")?;
        ensure!(state == "false running", "{program} is {state}");
    }
    Ok(())
}

/// Checks that each line of the programs' logs is a JSON object.
fn check_logs(system: &System<'_>) -> Result<()> {
    for program in PROGRAMS {
        let log = system.logs(program)?;
        for line in log.lines() {
            let is_object = serde_json::from_str::<Value>(line)
                .is_ok_and(|value| value["level"].is_string() && value["timestamp"].is_string());
            ensure!(is_object, "{program} has logged something else: {line}");
        }
        ensure!(log.lines().count() > 0, "{program} has logged nothing");
    }
    progress::step("all lines of both logs are JSON");
    Ok(())
}

/// Returns the sample order in one line.
fn sample() -> Result<String> {
    let file = project::root().join("shared/data/model.json");
    let text = fs::read_to_string(file).context("cannot read the sample order")?;
    Ok(text.lines().map(str::trim).collect())
}

/// Returns many orders, one per line.
fn orders() -> Result<String> {
    let sample = sample()?;
    if !sample.contains(SAMPLE_UID) {
        bail!("the sample order has another uid");
    }
    let lines = (0..ORDERS).map(|number| {
        let uid = format!("image-{number}");
        sample.replace(SAMPLE_UID, &uid) + "\n"
    });
    Ok(lines.collect())
}

fn send_signal(pid: u32, signal: &str) -> Result<()> {
    let launch = Launch::new("kill", "kill").args([signal, &pid.to_string()]);
    launch.output_of("").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_compose_writes_them() {
        assert_eq!(bytes_of("384m"), Some(384 * 1024 * 1024));
        assert_eq!(bytes_of("1g"), Some(1024 * 1024 * 1024));
        assert_eq!(bytes_of("17"), None);
    }
}
