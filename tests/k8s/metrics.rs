//! Tests the metrics of the node as a Prometheus gets them: Debian's, which scrapes the cluster
//! from within its network.

use std::{
    fs,
    process::{Child, Command, Stdio},
    sync::{MutexGuard, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::{ensure, Context, Result};
use caisson_local::caisson;
use caisson_tests::{
    command::{self, poll, Output},
    k8s::{Namespace, TestCluster},
    metrics::{check, value},
    paths, Runtime,
};
use serde_json::{json, Value};

use super::{cluster, turn, LIMIT};

const SYSTEM: &str = "caisson-system";
/// Prometheus' default limit for a scrape.
const SCRAPE: Duration = Duration::from_secs(10);

/// A cluster whose chart serves metrics, and a token that may read them.
struct Site {
    _turn: MutexGuard<'static, ()>,
    cluster: &'static TestCluster,
    namespace: Namespace<'static>,
    address: String,
    token: String,
}

/// Returns the cluster with metrics switched on.
fn site() -> Result<Site> {
    // Other tests install the chart without metrics, which takes a self-test each time.
    static INSTALLED: OnceLock<()> = OnceLock::new();
    let (turn, shared) = match INSTALLED.get() {
        Some(()) => turn(),
        None => cluster()?,
    };
    INSTALLED.get_or_init(|| ());
    let budget = json!("[homes]\nnode_budget_mib = 4096\n").to_string();
    let values = [
        ("metrics", r#"{"enabled":true}"#),
        ("config", budget.as_str()),
    ];
    caisson::upgrade_json(shared.cluster(), &values)?;
    shared.kubectl(&caisson::ROLLOUT)?.ok()?;
    let namespace = shared.namespace()?;
    let token = account(&namespace, "reader")?;
    namespace.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": { "name": "reads-metrics" },
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "caisson-metrics-reader",
        },
        "subjects": [
            { "kind": "ServiceAccount", "name": "reader", "namespace": namespace.name() },
        ],
    }))?;
    let of_node = [
        "get",
        "pods",
        "--namespace",
        SYSTEM,
        "--selector=app.kubernetes.io/component=node",
        "--field-selector=status.phase=Running",
        "--output=json",
    ];
    let pods: Value = serde_json::from_str(&shared.kubectl(&of_node)?.ok()?.text())?;
    let pods = pods["items"].as_array().context("no items")?;
    let mut living = pods
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let ip = living
        .next()
        .and_then(|pod| pod["status"]["podIP"].as_str())
        .context("no pod of the DaemonSet")?;
    Ok(Site {
        _turn: turn,
        cluster: shared,
        address: format!("{ip}:8443"),
        namespace,
        token,
    })
}

/// Makes a service account and returns a token of it.
fn account(namespace: &Namespace<'_>, name: &str) -> Result<String> {
    namespace
        .kubectl(&["create", "serviceaccount", name])?
        .ok()?;
    Ok(namespace.kubectl(&["create", "token", name])?.ok()?.line())
}

impl Site {
    /// Returns a program that will run in the node's network.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        let mark = self.cluster.cluster().layout().mark();
        command.args(["netns", "exec", mark, program]);
        command
    }

    /// Gets a path of the agent's server. Returns the status and the text.
    fn get(&self, path: &str, token: Option<&str>) -> Result<(String, String)> {
        let mut curl = self.inside("curl");
        curl.args(["--silent", "--show-error", "--insecure", "--max-time", "30"]);
        curl.args(["--write-out", "\n%{http_code}"]);
        if let Some(token) = token {
            curl.args(["--header", &format!("Authorization: Bearer {token}")]);
        }
        curl.arg(format!("https://{}{path}", self.address));
        let text = command::run(&mut curl, None, LIMIT)?.ok()?.text();
        let (body, code) = text.trim_end().rsplit_once('\n').context("no status")?;
        Ok((code.to_owned(), body.to_owned()))
    }

    fn metrics(&self) -> Result<String> {
        let (code, text) = self.get("/metrics", Some(&self.token))?;
        ensure!(code == "200", "{code}: {text}");
        Ok(text)
    }
}

/// A Prometheus that scrapes the node. Dropping it ends it.
struct Prometheus<'s> {
    site: &'s Site,
    process: Child,
    dir: tempfile::TempDir,
}

impl<'s> Prometheus<'s> {
    fn start(site: &'s Site) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = json!({
            "global": { "scrape_interval": "2s" },
            "scrape_configs": [{
                "job_name": "caisson",
                "scheme": "https",
                "honor_labels": true,
                "tls_config": { "insecure_skip_verify": true },
                "authorization": { "credentials": site.token },
                "static_configs": [{ "targets": [site.address] }],
            }],
        });
        let path = dir.path().join("prometheus.json");
        fs::write(&path, config.to_string())?;
        let mut prometheus = site.inside("prometheus");
        prometheus.arg(format!("--config.file={}", path.display()));
        let data = dir.path().join("data");
        prometheus.arg(format!("--storage.tsdb.path={}", data.display()));
        prometheus.arg("--web.listen-address=127.0.0.1:19090");
        let log = fs::File::create(dir.path().join("log"))?;
        let process = prometheus.stdout(Stdio::null()).stderr(log).spawn()?;
        Ok(Self { site, process, dir })
    }

    /// Returns what a query gives now, a series a line.
    fn query(&self, query: &str) -> Result<Output> {
        let mut promtool = self.site.inside("promtool");
        promtool.args(["query", "instant", "http://127.0.0.1:19090", query]);
        command::run(&mut promtool, None, LIMIT)
    }

    /// Waits until a query gives a series.
    fn wait_for(&self, query: &str) -> Result<()> {
        let has = || {
            let output = self.query(query).ok()?;
            (output.code == 0 && !output.line().is_empty()).then_some(())
        };
        poll(&format!("a series of {query}"), LIMIT, has).with_context(|| self.log())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the queries of the dashboard, with values for Grafana's variables.
fn queries() -> Result<Vec<String>> {
    let path = paths::workspace().join("deploy/chart/monitoring/dashboard.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array())
        .flatten();
    let queries = targets.filter_map(|target| target["expr"].as_str());
    Ok(queries
        .map(|query| query.replace("$__rate_interval", "1m"))
        .map(|query| query.replace("$instance", ".*"))
        .collect())
}

#[test]
fn metrics_are_for_those_whom_the_api_server_allows_them() -> Result<()> {
    let site = site()?;
    assert_eq!(site.get("/metrics", None)?.0, "401");
    assert_eq!(site.get("/metrics", Some("made.up.token"))?.0, "401");
    let stranger = account(&site.namespace, "stranger")?;
    let (code, text) = site.get("/metrics", Some(&stranger))?;
    assert_eq!(code, "403");
    assert!(text.contains("stranger"), "{text}");
    assert_eq!(site.get("/metrics", Some(&site.token))?.0, "200");
    assert_eq!(site.get("/healthz", None)?.0, "200");
    assert_eq!(site.get("/other", Some(&site.token))?.0, "404");
    Ok(())
}

#[test]
fn metrics_of_a_node_at_work_pass_promtool_and_count_its_pods() -> Result<()> {
    let site = site()?;
    let pod = site.namespace.pod("counted").runtime(Runtime::Caisson);
    let pod = pod.sh("sleep 100000").start()?;
    let started = "caisson_container_start_duration_seconds_count";
    // The shim counts beside its work.
    poll("the start to be counted", LIMIT, || {
        let text = site.metrics().ok()?;
        (value(&text, started).ok()? >= 1.0).then_some(())
    })?;
    let text = site.metrics()?;
    check(&text)?;
    for (series, at_least) in [
        (r#"caisson_pods{state="running"}"#, 1.0),
        (r#"caisson_vms{state="running"}"#, 1.0),
        (r#"caisson_memory_bytes{component="guest"}"#, 1e6),
        (r#"caisson_memory_bytes{component="vmm"}"#, 1e6),
        (r#"caisson_memory_bytes{component="daemons"}"#, 1e5),
        (r#"caisson_memory_bytes{component="shim"}"#, 1e6),
        ("caisson_agent_node_ready", 1.0),
        ("caisson_agent_collection_success", 1.0),
        ("process_resident_memory_bytes", 1e6),
    ] {
        let found = value(&text, series)?;
        assert!(found >= at_least, "{series} {found}");
    }
    pod.delete()
}

#[test]
fn start_that_is_refused_is_counted_by_its_reason() -> Result<()> {
    let site = site()?;
    let series = r#"caisson_start_failures_total{task="container",reason="skill"}"#;
    let before = value(&site.metrics()?, series)?;
    let pod = site.namespace.pod("lacks").runtime(Runtime::Caisson);
    let pod = pod.annotation("caisson.dev/skills", "no-such@1");
    let pod = pod.sh("sleep 1000").create()?;
    poll("the failure to be counted", LIMIT, || {
        let now = value(&site.metrics().ok()?, series).ok()?;
        (now > before).then_some(())
    })?;
    pod.delete()
}

#[test]
fn every_query_of_the_dashboard_gives_series_on_a_prometheus_that_scraped_the_node() -> Result<()> {
    let site = site()?;
    let prometheus = Prometheus::start(&site)?;
    prometheus.wait_for("caisson_build_info")?;
    let pod = site.namespace.pod("at-work").runtime(Runtime::Caisson);
    let pod = pod.annotation("caisson.dev/home", "persistent/anna");
    let pod = pod.annotation("caisson.dev/home-size", "64Mi");
    let pod = pod.annotation("caisson.dev/egress", "deny");
    let pod = pod.sh("sleep 100000").start()?;
    prometheus.wait_for(r#"rate(caisson_pod_egress_denied_packets_total{pod="at-work"}[1m])"#)?;
    let queries = queries()?;
    assert!(queries.len() > 20, "{queries:?}");
    for query in queries {
        prometheus.wait_for(&query)?;
    }
    pod.delete()
}

#[test]
fn node_is_scraped_in_time_while_pods_start_and_its_counters_never_go_back() -> Result<()> {
    let site = site()?;
    let started = "caisson_container_start_duration_seconds_count";
    let before = value(&site.metrics()?, started)?;
    thread::scope(|scope| -> Result<()> {
        let starts = scope.spawn(|| -> Result<()> {
            let start = |n| {
                let name = format!("load-{n}");
                let pod = site.namespace.pod(&name).runtime(Runtime::Caisson);
                pod.sh("sleep 100000").create()
            };
            let pods: Vec<_> = (0..5).map(start).collect::<Result<_>>()?;
            pods.iter().try_for_each(|pod| pod.wait("condition=Ready"))
        });
        let mut last = before;
        while !starts.is_finished() {
            let began = Instant::now();
            let now = value(&site.metrics()?, started)?;
            assert!(began.elapsed() < SCRAPE, "{:?}", began.elapsed());
            assert!(now >= last, "{now} after {last}");
            last = now;
        }
        starts.join().map_err(|_| anyhow::anyhow!("panic"))?
    })?;
    poll("the starts to be counted", LIMIT, || {
        let now = value(&site.metrics().ok()?, started).ok()?;
        (now >= before + 5.0).then_some(())
    })
}
