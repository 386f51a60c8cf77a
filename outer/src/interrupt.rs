//! Ctrl-C as a request: the loop ends its step, saves, and says how to resume.

use outerloop_core::{Error, Result};
use std::sync::{
    atomic::{AtomicBool, Ordering},
    Mutex, PoisonError,
};

/// Signal handlers belong to the process, so the flag does too.
static REQUESTED: AtomicBool = AtomicBool::new(false);
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// Whether the user or the batch system asked the run to stop.
///
/// The first SIGINT, SIGTERM or SIGHUP (Ctrl-C, Ctrl-Break or close on Windows) sets the flag; a
/// second one ends the process at once with exit code 130.
///
/// ```no_run
/// # use outerloop_outer::interrupt::Interrupt;
/// let interrupt = Interrupt::install()?;
/// for _step in 0..1000 {
///     // one outer step
///     if interrupt.requested() {
///         // save a checkpoint
///         break;
///     }
/// }
/// # Ok::<(), outerloop_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Interrupt(());

impl Interrupt {
    /// Installs the handler; later calls share it.
    ///
    /// # Errors
    /// If the program already has a handler of its own.
    pub fn install() -> Result<Interrupt> {
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if !*installed {
            ctrlc::set_handler(|| {
                if REQUESTED.swap(true, Ordering::SeqCst) {
                    std::process::exit(130);
                }
            })
            .map_err(|e| Error::invalid("signal handler", e.to_string()))?;
            *installed = true;
        }
        Ok(Interrupt(()))
    }

    /// Whether a stop was asked for.
    pub fn requested(self) -> bool {
        REQUESTED.load(Ordering::SeqCst)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::{
        io::{BufRead, BufReader},
        process::{Child, Command, Stdio},
        time::Duration,
    };

    const CHILD: &str = "OUTERLOOP_TEST_INTERRUPT_CHILD";

    /// The child of the test below: does nothing in an ordinary run.
    #[test]
    fn child_waits_for_signals() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let interrupt = Interrupt::install().unwrap();
        assert!(!Interrupt::install().unwrap().requested());
        println!("\nready");
        for _ in 0..6000 {
            std::thread::sleep(Duration::from_millis(10));
            if interrupt.requested() {
                println!("\nrequested");
                break;
            }
        }
        std::thread::sleep(Duration::from_secs(60));
    }

    fn interrupt(child: &Child) {
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    }

    #[test]
    fn the_first_signal_asks_and_the_second_ends() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "interrupt::tests::child_waits_for_signals"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(std::io::Result::unwrap);
        assert!(lines.any(|l| l == "ready"));
        interrupt(&child);
        assert!(lines.any(|l| l == "requested"));
        interrupt(&child);
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }
}
