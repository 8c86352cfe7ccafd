use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use reft_bench::{TrainingRun, runs_page};
use reft_models::write_text;
use reft_train::{Plan, Progress, StepStats, ValidationStats};

use crate::terminal::note;

/// Draws the run's page during the run. An error of the page does not end the run.
#[derive(Debug)]
pub struct RunPage {
    directory: PathBuf,
    drawn: Instant,
    /// Least time between two drawings, a multiple of the last drawing's time.
    pause: Duration,
    has_failed: bool,
}

/// Least time between two drawings, and its least ratio to the time of a drawing.
const PAUSE: Duration = Duration::from_secs(5);
const SHARE: u32 = 200;

impl RunPage {
    /// The page of the run in a directory.
    pub fn new(directory: &Path) -> Self {
        let directory = directory.to_owned();
        Self { directory, drawn: Instant::now(), pause: PAUSE, has_failed: false }
    }

    /// Draws the page of the steps so far.
    ///
    /// # Errors
    /// If the run cannot be read, or the page not be written.
    pub fn write(directory: &Path) -> Result<PathBuf> {
        let path = directory.join(TrainingRun::PAGE);
        let run = TrainingRun::read(directory)?;
        let command = format!("reft report {}", run.name);
        write_text(&path, &runs_page(&[run], &command))?;
        Ok(path)
    }

    fn draw(&mut self) {
        let started = Instant::now();
        if let Err(error) = Self::write(&self.directory)
            && !std::mem::replace(&mut self.has_failed, true)
        {
            note(format!("warning: the page of the run is not drawn: {error:#}"));
        }
        self.drawn = Instant::now();
        self.pause = PAUSE.max(started.elapsed() * SHARE);
    }
}

impl Progress for RunPage {
    fn started(&mut self, _plan: &Plan) {
        self.draw();
    }

    fn step(&mut self, _stats: &StepStats) {
        if self.drawn.elapsed() >= self.pause {
            self.draw();
        }
    }

    fn validated(&mut self, stats: &ValidationStats) {
        if stats.step > 0 && self.drawn.elapsed() >= self.pause / 5 {
            self.draw();
        }
    }
}
