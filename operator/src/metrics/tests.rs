use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use http::{Request, Response};
use kube::client::Body;
use promql_parser::label::MatchOp;
use promql_parser::parser::{self, Expr, LabelModifier};
use serde_json::Value;
use tower::retry::Policy;
use tower::{Layer, Service, ServiceExt};

use super::*;

const DASHBOARD: &str = include_str!("../../../charts/sidewinder/dashboards/sidewinder.json");
const RULES: &str = include_str!("../../../charts/sidewinder/rules/alerts.yaml");

/// Labels that Prometheus itself gives to what it scrapes.
const TARGET_LABELS: [&str; 4] = ["instance", "job", "namespace", "pod"];

/// Every series of a scrape: the values of each label, by the metric's name.
type Scrape = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn read(text: &str) -> Scrape {
    let mut scrape = Scrape::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').unwrap().0;
        let (name, labels) = series
            .split_once('{')
            .map_or((series, ""), |(name, labels)| {
                (name, labels.trim_end_matches('}'))
            });
        let known = scrape.entry(name.to_owned()).or_default();
        for label in labels.split("\",").filter(|label| !label.is_empty()) {
            let (label, value) = label.split_once("=\"").unwrap();
            known
                .entry(label.to_owned())
                .or_default()
                .insert(value.trim_end_matches('"').to_owned());
        }
    }
    scrape
}

/// One of everything.
async fn used() -> Metrics {
    let metrics = Metrics::new();
    let took = Duration::from_millis(40);
    metrics.session_ended(None, true, Reason::Succeeded, took);
    metrics.target_ended(Reason::Succeeded, Some(Duration::from_micros(90)));
    metrics.step("open", 0.004);
    metrics.sidecar_refused(Reason::ImagePullFailed);
    metrics
        .sidecars
        .get_or_create(&SidecarLabel {
            attach: "SameUser".into(),
        })
        .inc();
    drop(metrics.queued());
    metrics.session_retried();
    metrics.policy_in_place("sidewinder-operator", true);
    // Each class of answers, none, and one that nobody waits for.
    let server = tower::service_fn(async |request: Request<Body>| {
        match request.uri().path().rsplit_once('/').unwrap().1.parse() {
            Ok(code) => Ok(Response::builder()
                .status::<u16>(code)
                .body(String::new())
                .unwrap()),
            Err(_) => Err("no answer"),
        }
    });
    let mut server = metrics.api.layer(server);
    let mut open = Vec::new();
    for path in [
        "pods/101",
        "pods/200",
        "pods/404",
        "pods/503",
        "pods/none",
        "pods?watch=true",
    ] {
        let request = Request::builder()
            .uri(format!("/api/v1/namespaces/shop/{path}"))
            .body(Body::empty())
            .unwrap();
        open.push(server.ready().await.unwrap().call(request).await);
    }
    let watch = Request::get("/api/v1/pods/200?watch=true")
        .body(Body::empty())
        .unwrap();
    open.push(server.ready().await.unwrap().call(watch).await);
    drop(server.call(Request::get("/api/v1/pods").body(Body::empty()).unwrap()));
    let busy = Response::builder().status(429).body(()).unwrap();
    let mut again = metrics.api.retry();
    let pause = again.retry(&mut Request::new(Body::empty()), &mut Ok(busy));
    assert!(pause.is_some());
    metrics
}

#[tokio::test]
async fn a_scrape_has_the_names_that_are_documented() {
    let metrics = used().await;
    metrics.traffic.sent.inc_by(12);
    let text = metrics.encode().unwrap();
    for line in [
        "sidewinder_sessions_total{action=\"none\",result=\"Complete\",reason=\"Succeeded\"} 1",
        "sidewinder_sessions_total{action=\"remoteExec\",result=\"Failed\",reason=\"InternalError\"} 0",
        "sidewinder_sessions_active 0",
        "sidewinder_sessions_queued 0",
        "sidewinder_session_queue_seconds_count 1",
        "sidewinder_relay_sent_bytes_total 12",
        "sidewinder_step_duration_seconds_count{step=\"open\"} 1",
        "sidewinder_session_duration_seconds_count{action=\"none\"} 1",
        "sidewinder_targets_total{reason=\"Succeeded\"} 1",
        "sidewinder_target_pause_seconds_bucket{le=\"0.0001\"} 1",
        "sidewinder_sidecars_refused_total{reason=\"ImagePullFailed\"} 1",
        "sidewinder_policy_in_place{policy=\"sidewinder-operator\"} 1",
        "sidewinder_build_info{version=",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
        "process_start_time_seconds ",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

#[test]
fn a_stream_counts_while_it_is_open() {
    let metrics = Metrics::new();
    let streams = || {
        let text = metrics.encode().unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("sidewinder_relay_streams "));
        line.unwrap().to_owned()
    };
    let one = metrics.traffic.opened();
    let two = metrics.traffic.clone().opened();
    assert_eq!(streams(), "sidewinder_relay_streams 2");
    drop((one, two));
    assert_eq!(streams(), "sidewinder_relay_streams 0");
}

/// Checks an expression against what is scraped, and returns the metrics that it reads.
fn check(expr: &Expr, scrape: &Scrape, wrong: &mut Vec<String>) -> BTreeSet<String> {
    let has_label = |metrics: &BTreeSet<String>, label: &str| {
        TARGET_LABELS.contains(&label)
            || metrics.iter().any(|metric| {
                scrape
                    .get(metric)
                    .is_some_and(|labels| labels.contains_key(label))
            })
    };
    match expr {
        Expr::VectorSelector(selector) => {
            let name = selector.name.clone().unwrap_or_default();
            let Some(labels) = scrape.get(&name) else {
                wrong.push(format!("there is no metric {name}"));
                return BTreeSet::new();
            };
            for matcher in &selector.matchers.matchers {
                if TARGET_LABELS.contains(&matcher.name.as_str()) {
                    continue;
                }
                let Some(values) = labels.get(&matcher.name) else {
                    wrong.push(format!("{name} has no label {}", matcher.name));
                    continue;
                };
                let pattern = match matcher.op {
                    MatchOp::Equal | MatchOp::NotEqual => vec![matcher.value.as_str()],
                    MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').collect(),
                };
                for value in pattern {
                    if !values.contains(value) {
                        wrong.push(format!("{name} has no {}={value:?}", matcher.name));
                    }
                }
            }
            BTreeSet::from([name])
        }
        Expr::MatrixSelector(matrix) => {
            check(&Expr::VectorSelector(matrix.vs.clone()), scrape, wrong)
        }
        Expr::Aggregate(aggregate) => {
            let metrics = check(&aggregate.expr, scrape, wrong);
            if let Some(LabelModifier::Include(labels) | LabelModifier::Exclude(labels)) =
                &aggregate.modifier
            {
                for label in &labels.labels {
                    if !has_label(&metrics, label) {
                        wrong.push(format!("none of {metrics:?} has a label {label}"));
                    }
                }
            }
            metrics
        }
        Expr::Binary(binary) => {
            let mut metrics = check(&binary.lhs, scrape, wrong);
            metrics.extend(check(&binary.rhs, scrape, wrong));
            let matching = binary
                .modifier
                .as_ref()
                .and_then(|modifier| modifier.matching.as_ref());
            for label in matching
                .iter()
                .flat_map(|matching| &matching.labels().labels)
            {
                if !has_label(&metrics, label) {
                    wrong.push(format!("none of {metrics:?} has a label {label}"));
                }
            }
            metrics
        }
        Expr::Call(call) => call
            .args
            .args
            .iter()
            .flat_map(|argument| check(argument, scrape, wrong))
            .collect(),
        Expr::Paren(paren) => check(&paren.expr, scrape, wrong),
        Expr::Unary(unary) => check(&unary.expr, scrape, wrong),
        Expr::Subquery(subquery) => check(&subquery.expr, scrape, wrong),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => BTreeSet::new(),
        Expr::Extension(other) => panic!("not PromQL: {other:?}"),
    }
}

/// Labels named in a text by `before`, such as `{{` or `$labels.`.
fn labels_named(text: &str, before: &str) -> Vec<String> {
    text.split(before)
        .skip(1)
        .map(|rest| {
            rest.chars()
                .skip_while(|character| *character == ' ')
                .take_while(|character| character.is_ascii_alphanumeric() || *character == '_')
                .collect()
        })
        .collect()
}

/// What is wrong with a query and the labels that are shown of its result.
fn faults(query: &str, shown: &[String], scrape: &Scrape) -> Vec<String> {
    // What Grafana puts in.
    let query = query.replace("$__rate_interval", "5m");
    let expr = parser::parse(&query).unwrap_or_else(|error| panic!("{query}: {error}"));
    let mut wrong = Vec::new();
    let metrics = check(&expr, scrape, &mut wrong);
    let text = expr.to_string();
    for label in shown {
        let there = TARGET_LABELS.contains(&label.as_str())
            || metrics
                .iter()
                .any(|metric| scrape[metric].contains_key(label));
        // What is not grouped by is lost.
        let mut groups = text.split(" by (").skip(1).peekable();
        let kept = groups.peek().is_none()
            || groups.any(|rest| {
                let labels = rest.split(')').next().unwrap();
                labels.split(", ").any(|by| by == label)
            });
        if !there || !kept {
            wrong.push(format!("the result of {query} has no label {label}"));
        }
    }
    wrong
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().unwrap();
    panels
        .iter()
        .filter(|panel| panel["type"] != "row")
        .collect()
}

#[tokio::test]
async fn every_metric_and_label_of_the_dashboard_is_scraped() {
    let scrape = read(&used().await.encode().unwrap());
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut queries = 0;
    let mut wrong = Vec::new();
    for panel in panels(&dashboard) {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            let shown = labels_named(target["legendFormat"].as_str().unwrap(), "{{");
            for fault in faults(target["expr"].as_str().unwrap(), &shown, &scrape) {
                wrong.push(format!("{}: {fault}", panel["title"]));
            }
            queries += 1;
        }
    }
    assert!(queries >= 30, "{queries}");
    assert_eq!(wrong, Vec::<String>::new());
}

#[tokio::test]
async fn every_metric_and_label_of_the_alerts_is_scraped() {
    let scrape = read(&used().await.encode().unwrap());
    let rules: Value = serde_yaml::from_str(RULES).unwrap();
    let mut wrong = Vec::new();
    let groups = rules["groups"].as_array().unwrap();
    let alerts: Vec<_> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert!(alerts.len() >= 8);
    for alert in alerts {
        let shown = labels_named(&alert["annotations"].to_string(), "$labels.");
        for fault in faults(alert["expr"].as_str().unwrap(), &shown, &scrape) {
            wrong.push(format!("{}: {fault}", alert["alert"]));
        }
        assert!(
            ["critical", "warning"].contains(&alert["labels"]["severity"].as_str().unwrap()),
            "{alert}"
        );
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// The check itself can fail.
#[tokio::test]
async fn a_query_for_what_is_not_scraped_is_found() {
    let scrape = read(&used().await.encode().unwrap());
    for (query, shown, fault) in [
        ("sidewinder_session_total", "", "there is no metric"),
        (
            "sum by (pod_name) (sidewinder_leader)",
            "",
            "has a label pod_name",
        ),
        (
            "sidewinder_sessions_total{outcome=\"x\"}",
            "",
            "no label outcome",
        ),
        (
            "sidewinder_sessions_total{reason=\"NoSuchReason\"}",
            "",
            "has no reason=",
        ),
        (
            "sum by (action) (sidewinder_sessions_total)",
            "result",
            "has no label result",
        ),
    ] {
        let shown: Vec<_> = (!shown.is_empty())
            .then(|| shown.to_owned())
            .into_iter()
            .collect();
        let found = faults(query, &shown, &scrape);
        assert!(
            found.len() == 1 && found[0].contains(fault),
            "{query}: {found:?}"
        );
    }
}

/// Nothing that is scraped is left out of the dashboard, so that a new metric is thought of.
#[tokio::test]
async fn every_metric_is_on_the_dashboard() {
    let base = |name: &str| {
        ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name)
            .to_owned()
    };
    let scrape = read(&used().await.encode().unwrap());
    let metrics: BTreeSet<_> = scrape.keys().map(|name| base(name)).collect();
    let missing: Vec<_> = metrics
        .iter()
        .filter(|metric| !DASHBOARD.contains(metric.as_str()))
        .collect();
    assert_eq!(missing, Vec::<&String>::new());
}

/// Whatever it is told, a scrape stays small: the number of series has a bound that does not depend on the cluster.
#[tokio::test]
async fn no_label_grows_with_the_cluster() {
    let metrics = used().await;
    for reason in Reason::ALL {
        metrics.session_ended(None, false, *reason, Duration::ZERO);
        metrics.target_ended(*reason, None);
        metrics.sidecar_refused(*reason);
    }
    let before = metrics.encode().unwrap().lines().count();
    let server = tower::service_fn(async |_: Request<Body>| {
        Ok::<_, Infallible>(Response::new(String::new()))
    });
    let mut server = metrics.api.layer(server);
    for number in 0..500 {
        for path in [
            format!("/api/v1/namespaces/ns-{number}/pods/web-{number}"),
            format!("/apis/group-{number}.example/v1/kind{number}s/x"),
            format!("/api/v1/pods?labelSelector=app%3D{number}&watch=true"),
        ] {
            let method = format!("METHOD{number}");
            let request = Request::builder()
                .method(if number % 2 == 0 { "GET" } else { &method })
                .uri(path)
                .body(Body::empty())
                .unwrap();
            drop(server.ready().await.unwrap().call(request).await.unwrap());
        }
    }
    let after = metrics.encode().unwrap();
    assert!(
        !after.contains("ns-1") && !after.contains("group-"),
        "{after}"
    );
    // A few new pairs of verb and resource, each with its histogram.
    assert!(after.lines().count() - before < 100);
}
