//! Lines of the control socket, as either end parses them.

use salvol::control::{LINE_BYTES_MAX, Reply, Request};
use salvol::history::{Pinned, PointInfo, PruneReport, Unpinned};
use salvol::volume::Status;

use super::Target;

pub const REQUEST: Target =
    Target { name: "request", run: request, seeds: request_seeds, bytes_max: 1024, mutations: 4000 };
pub const REPLY: Target = Target { name: "reply", run: reply, seeds: reply_seeds, bytes_max: 2048, mutations: 4000 };

fn request(line: &[u8]) -> bool {
    match Request::parse(line) {
        Err(error) => {
            assert!(Reply::Error(error).line().len() <= 6 * LINE_BYTES_MAX);
            false
        }
        Ok(request) => {
            let again = serde_json::to_vec(&request).unwrap();
            assert!(!again.contains(&b'\n'), "a request of two lines");
            assert_eq!(Request::parse(&again), Ok(request));
            true
        }
    }
}

fn request_seeds() -> Vec<Vec<u8>> {
    let lines = [
        r#"{"command":"status"}"#,
        r#"{"command":"synch","label":"before upgrade","info":"x","wait":"archived","agent":{"name":"pg","every_ms":5}}"#,
        r#"{"command":"archived","position":1234}"#,
        r#"{"command":"report","agent":{"name":"pg"},"error":"no server"}"#,
        r#"{"command":"rollback","to":"p42"}"#,
        r#"{"command":"pin","point":"p42"}"#,
        r#"{"command":"unpin","point":"p42"}"#,
        r#"{"command":"prune","keep_since":"2026-01-01T00:00:00Z","keep_points":10,"dry_run":true}"#,
        r#"{"command":"detach","force":false}"#,
    ];
    lines.iter().map(|line| line.as_bytes().to_vec()).collect()
}

fn reply(line: &[u8]) -> bool {
    let Ok(reply) = serde_json::from_slice::<Reply>(line) else { return false };
    let again = reply.line();
    assert!(again.ends_with(b"\n") && again.iter().filter(|byte| **byte == b'\n').count() == 1);
    let parsed = serde_json::from_slice::<Reply>(&again).unwrap();
    let (Reply::Ok(value), Reply::Ok(_)) = (reply.clone(), parsed.clone()) else {
        assert_eq!(parsed, reply);
        return true;
    };
    // What commands make of an answer.
    if let Ok(status) = serde_json::from_value::<Status>(value.clone()) {
        serde_json::to_vec(&status).unwrap();
    }
    if let Ok(point) = serde_json::from_value::<PointInfo>(value.clone()) {
        serde_json::to_vec(&point).unwrap();
    }
    let _ = serde_json::from_value::<Pinned>(value.clone());
    let _ = serde_json::from_value::<Unpinned>(value.clone());
    let _ = serde_json::from_value::<PruneReport>(value);
    true
}

fn reply_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        r#"{"error":"mounted at /mnt"}"#,
        r#"{"ok":{}}"#,
        r#"{"ok":{"id":"p42","label":"x","time":"1970-01-01T00:00:00Z","position":42,"consistency":"application","info":"y","segments":3,"where":"primary","pinned":false}}"#,
        r#"{"ok":{"before":"p99","position":1234,"bytes":40960}}"#,
    ]
    .iter()
    .map(|line| line.as_bytes().to_vec())
    .collect();
    let answers = [serde_json::to_value(Status::default()), serde_json::to_value(PruneReport::default())];
    seeds.extend(answers.map(|answer| Reply::Ok(answer.unwrap()).line()));
    seeds
}
