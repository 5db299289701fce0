//! The language of the control socket: one JSON object a line, one line back for each. `docs/agents.md` is for those who
//! write the other end.
//!
//! ```text
//! {"command":"status"}                                             {"ok":{"name":"db","state":"live",...}}
//! {"command":"synch","label":"before upgrade","wait":"durable"}    {"ok":{"id":"p42","position":1234,...}}
//! {"command":"archived","position":1234}                           {"ok":{"position":1234}}
//! {"command":"report","agent":{"name":"pg"},"error":"no server"}   {"ok":{}}
//! {"command":"rollback","to":"p42"}                                {"ok":{"before":"p99","position":1234,"bytes":40960}}
//! {"command":"pin","point":"p42"}                                 {"ok":{"id":"p42","segments":9,"already":false,...}}
//! {"command":"unpin","point":"p42"}                               {"ok":{"id":"p42","segments":4,...}}
//! {"command":"prune","keep_points":10,"dry_run":true}              {"ok":{"segments":7,"bytes":40960,...}}
//! {"command":"detach","force":false}                               {"error":"mounted at /mnt"}
//! ```
//!
//! The answer to `detach` comes when the volume is closed and its device is gone. Lines end at [`LINE_BYTES_MAX`].

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::history::PointInfo;

/// Bytes of a request's line, and of a reply's.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    Status {},
    Synch {
        #[serde(default)]
        label: String,
        #[serde(default)]
        info: String,
        #[serde(default)]
        wait: Wait,
        /// Who asks, when it is an agent: its successes and failures show in the status.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<AgentName>,
    },
    /// Answered when everything up to a position is in the store.
    Archived {
        position: u64,
    },
    /// An agent says why it could not have a point marked.
    Report {
        agent: AgentName,
        error: String,
    },
    /// Answered when the volume is what it was at the moment `to`, a POINT. Requests wait meanwhile.
    Rollback {
        to: String,
    },
    /// Answered when no pruning and no ring removes the synch point any more.
    Pin {
        point: String,
    },
    /// Answered when the pin is gone, and the segments that only it kept.
    Unpin {
        point: String,
    },
    /// Answered when what the rule, one of the two, does not keep has left the archive.
    Prune {
        /// RFC 3339.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep_since: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep_points: Option<u64>,
        #[serde(default)]
        dry_run: bool,
    },
    Detach {
        #[serde(default)]
        force: bool,
    },
}

/// An agent, as it calls itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentName {
    pub name: String,
    /// How often it means to mark; 0 when it does not say.
    #[serde(default)]
    pub every_ms: u64,
}

/// When a synch is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// When the mark is durable on the primary.
    #[default]
    Durable,
    /// When the point can be restored from the store alone: for as long as the store is away.
    Archived,
}

/// One line back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    Ok(Value),
    Error(String),
}

impl Request {
    /// The request in `line`.
    ///
    /// # Errors
    /// What is wrong with it, for the asker.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))
    }
}

impl Reply {
    /// The reply as a line.
    pub fn line(&self) -> Vec<u8> {
        let mut line =
            serde_json::to_vec(self).unwrap_or_else(|_| br#"{"error":"the reply cannot be written"}"#.to_vec());
        line.push(b'\n');
        line
    }
}

/// A synch point, as `salvol points` lists it.
pub(super) fn point(point: &PointInfo) -> Value {
    json!(point)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{SegmentNumber, SynchMark};
    use crate::history::Whereabouts;

    #[test]
    fn requests_are_what_the_head_of_this_file_says() {
        assert_eq!(Request::parse(br#"{"command":"status"}"#), Ok(Request::Status {}));
        let synch = Request::parse(br#"{"command":"synch","label":"x","wait":"durable"}"#);
        assert_eq!(
            synch,
            Ok(Request::Synch { label: "x".into(), info: String::new(), wait: Wait::Durable, agent: None })
        );
        let report = Request::parse(br#"{"command":"report","agent":{"name":"pg"},"error":"no server"}"#);
        let agent = AgentName { name: "pg".into(), every_ms: 0 };
        assert_eq!(report, Ok(Request::Report { agent, error: "no server".into() }));
        let archived = Request::parse(br#"{"command":"archived","position":1234}"#);
        assert_eq!(archived, Ok(Request::Archived { position: 1234 }));
        let rollback = Request::parse(br#"{"command":"rollback","to":"p42"}"#);
        assert_eq!(rollback, Ok(Request::Rollback { to: "p42".into() }));
        let [pin, unpin] = ["pin", "unpin"].map(|verb| format!(r#"{{"command":"{verb}","point":"p42"}}"#));
        assert_eq!(Request::parse(pin.as_bytes()), Ok(Request::Pin { point: "p42".into() }));
        assert_eq!(Request::parse(unpin.as_bytes()), Ok(Request::Unpin { point: "p42".into() }));
        let prune = Request::parse(br#"{"command":"prune","keep_points":10,"dry_run":true}"#);
        assert_eq!(prune, Ok(Request::Prune { keep_since: None, keep_points: Some(10), dry_run: true }));
        assert_eq!(Request::parse(br#"{"command":"detach","force":true}"#), Ok(Request::Detach { force: true }));
    }

    #[test]
    fn anything_else_is_an_error_and_no_panic() {
        for line in
            [&b"{"[..], b"", b"\xff\xfe", b"[]", b"{\"command\":\"format\"}", b"{\"command\":\"status\",\"x\":1}"]
        {
            assert!(Request::parse(line).is_err(), "{line:?}");
        }
        let deep = [b"[".repeat(50_000), b"]".repeat(50_000)].concat();
        assert!(Request::parse(&deep).is_err());
    }

    #[test]
    fn a_point_is_spelt_as_points_spell_it() {
        let mark = SynchMark { point: 42, time_ns: 0, label: "x".into(), info: "y".into() };
        let told = point(&PointInfo::new(&mark, SegmentNumber(3), 3, Whereabouts::Primary));
        assert_eq!(
            told,
            json!({
                "id": "p42", "label": "x", "time": "1970-01-01T00:00:00Z", "position": 42, "consistency": "application",
                "info": "y", "segments": 3, "where": "primary", "pinned": false,
            })
        );
    }

    #[test]
    fn replies_are_one_line() {
        let line = Reply::Error("two\nlines".into()).line();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(Reply::Ok(json!({"a": 1})).line(), b"{\"ok\":{\"a\":1}}\n");
    }
}
