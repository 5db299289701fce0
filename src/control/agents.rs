//! What is known of the agents of a volume, for its status: who asked for points, and how that went.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::AgentName;
use crate::history::PointInfo;
use crate::volume::AgentStatus;

/// Agents that are remembered. More than this is somebody's mistake: then the one that has been silent longest goes.
const AGENTS_MAX: usize = 32;
/// Characters that are kept of a name and of an error.
const TEXT_CHARS: usize = 500;

/// The agents of a volume, by name.
#[derive(Debug, Default)]
pub(super) struct Agents(Mutex<BTreeMap<String, Agent>>);

#[derive(Debug)]
struct Agent {
    status: AgentStatus,
    heard: Instant,
    marked: Option<Instant>,
}

impl Agents {
    /// The agent asked for a point, and this came of it.
    pub(super) fn note(&self, agent: &AgentName, outcome: Result<&PointInfo, &str>) {
        let now = Instant::now();
        let name = shortened(&agent.name);
        let mut agents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if agents.len() >= AGENTS_MAX && !agents.contains_key(&name) {
            let silent = agents.iter().min_by_key(|(_, agent)| agent.heard).map(|(name, _)| name.clone());
            silent.and_then(|name| agents.remove(&name));
        }
        let status = AgentStatus { name: name.clone(), ..AgentStatus::default() };
        let known = agents.entry(name).or_insert(Agent { status, heard: now, marked: None });
        known.heard = now;
        let status = &mut known.status;
        status.every_seconds = agent.every_ms as f64 / 1000.0;
        match outcome {
            Ok(point) => {
                (status.point, status.last_success) = (Some(point.id.clone()), Some(point.time.clone()));
                (status.error, status.failures) = (None, 0);
                known.marked = Some(now);
            }
            Err(error) => {
                status.error = Some(shortened(error));
                status.failures += 1;
            }
        }
    }

    /// All that are known.
    pub(super) fn statuses(&self) -> Vec<AgentStatus> {
        let agents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let status = |agent: &Agent| AgentStatus {
            last_success_seconds: agent.marked.map(|marked| marked.elapsed().as_secs_f64()),
            ..agent.status.clone()
        };
        agents.values().map(status).collect()
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(TEXT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{SegmentNumber, SynchMark};
    use crate::history::Whereabouts;

    fn agent(name: &str) -> AgentName {
        AgentName { name: name.to_owned(), every_ms: 30_000 }
    }

    #[test]
    fn failures_are_counted_until_a_point_is_marked() {
        let agents = Agents::default();
        let mark = SynchMark { point: 42, time_ns: 0, label: String::new(), info: String::new() };
        let point = PointInfo::new(&mark, SegmentNumber(1), 1, Whereabouts::Primary);
        agents.note(&agent("pg"), Ok(&point));
        agents.note(&agent("pg"), Err("no server"));
        agents.note(&agent("pg"), Err("still none"));
        let status = &agents.statuses()[0];
        assert_eq!((status.point.as_deref(), status.failures), (Some("p42"), 2));
        assert_eq!((status.error.as_deref(), status.every_seconds), (Some("still none"), 30.0));
        agents.note(&agent("pg"), Ok(&point));
        assert_eq!((&agents.statuses()[0].error, agents.statuses()[0].failures), (&None, 0));
    }

    #[test]
    fn there_is_a_bound_on_agents_and_on_what_they_say() {
        let agents = Agents::default();
        for number in 0..3 * AGENTS_MAX {
            agents.note(&agent(&format!("{number}")), Err(&"\u{e4}".repeat(3000)));
        }
        let statuses = agents.statuses();
        assert_eq!(statuses.len(), AGENTS_MAX);
        assert!(
            statuses
                .iter()
                .all(|status| status.error.as_ref().is_some_and(|error| error.chars().count() == TEXT_CHARS))
        );
    }
}
