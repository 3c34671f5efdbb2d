//! What a run tells about itself while it runs: events, and the sinks that write, show and draw them.

pub mod console;
mod curves;
mod events;
mod jsonl;

pub use console::{Console, Progress, Screen};
pub use curves::draw_curves;
pub use events::{Checkpoint, Eval, Event, Rollout, Sample, Train, Warning};
pub use jsonl::{Jsonl, resume_at};

use crate::error::Result;

/// Takes events in order.
pub trait Sink: Send {
    fn record(&mut self, event: &Event) -> Result<()>;

    /// Makes what was recorded durable: called before a checkpoint commits, so that no checkpoint is ahead of its metrics.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Several sinks as one. Each gets every event, also when one before it fails; the first error is returned.
#[derive(Default)]
pub struct Sinks(pub Vec<Box<dyn Sink>>);

impl Sinks {
    fn each(&mut self, act: impl Fn(&mut dyn Sink) -> Result<()>) -> Result<()> {
        let mut first = Ok(());
        for sink in &mut self.0 {
            first = first.and(act(sink.as_mut()));
        }
        first
    }
}

impl Sink for Sinks {
    fn record(&mut self, event: &Event) -> Result<()> {
        self.each(|sink| sink.record(event))
    }

    fn flush(&mut self) -> Result<()> {
        self.each(|sink| sink.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::{Arc, Mutex};

    struct Log(Arc<Mutex<Vec<u64>>>);

    impl Sink for Log {
        fn record(&mut self, event: &Event) -> Result<()> {
            self.0.lock().unwrap().push(event.step());
            Ok(())
        }
    }

    struct Broken(&'static str);

    impl Sink for Broken {
        fn record(&mut self, _: &Event) -> Result<()> {
            Err(Error::run(self.0))
        }
    }

    #[test]
    fn a_failing_sink_is_reported_and_the_others_still_record() {
        let log = Arc::new(Mutex::new(vec![]));
        let mut sinks = Sinks(vec![Box::new(Broken("first")), Box::new(Broken("second")), Box::new(Log(log.clone()))]);
        let event = Event::Warning(Warning { step: 5, code: "c".into(), message: "m".into() });
        assert_eq!(sinks.record(&event).unwrap_err().to_string(), "first");
        assert_eq!(*log.lock().unwrap(), [5]);
        sinks.flush().unwrap();
    }
}
