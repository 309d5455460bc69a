//! The allocator, and returning freed memory to the system.

#[cfg(target_os = "linux")]
use std::fs;
use std::{
    cell::Cell,
    ptr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tidegate_server::{Encoded, Hub};
use tokio::{
    runtime::Handle,
    task::{spawn_blocking, yield_now},
    time,
};

/// The allocator of the program. The C library's gives each thread a heap of its own and keeps freed memory there, so
/// that events which one thread makes and another frees take memory twice.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_page_reclaim_on_free`: whether a thread reclaims a page when a block in it is freed.
const PAGE_RECLAIM_ON_FREE: libmimalloc_sys::mi_option_t = 35;

/// The time between two looks at the memory of the process.
const INTERVAL: Duration = Duration::from_secs(1);

/// The most intervals between two collections of what did not go back. They double.
const PAUSES: u32 = 64;

/// The bytes that a stream on a connection of its own holds, as docs/memory.md has it.
const STREAM_BYTES: u64 = 26 << 10;

/// The fewest bytes that are worth a collection, which visits every page.
const WORTHWHILE: u64 = 16 << 20;

/// How often the threads were asked to return what is free.
static ASKED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// How often this thread was, when it last did.
    static ANSWERED: Cell<u64> = const { Cell::new(0) };
}

/// Sets the allocator up. Call it before the program has other threads.
///
/// With reclaiming off, a page returns to the system when every block in it is freed, by any thread. By default a
/// thread that frees a block in an abandoned page reclaims the page, and no other thread can release it then: after
/// 500 MiB of backlog had gone with its clients, 450 MiB stayed resident.
#[expect(
    unsafe_code,
    reason = "the bindings of mimalloc have no safe form of it"
)]
pub(crate) fn init() {
    // SAFETY: it takes no pointer, and sets a number that mimalloc checks.
    unsafe { libmimalloc_sys::mi_option_set(PAGE_RECLAIM_ON_FREE, -1) }
}

/// Returns freed memory to the system each time the process has more beyond what events, filters and streams hold than it had
/// at the least. mimalloc does so by itself, but only in the course of later allocations, which an idle server does not
/// make. Never returns.
pub(crate) async fn release_freed(hub: Hub<Encoded>) {
    let mut ticks = time::interval(INTERVAL);
    // At the least, and what the last collection left or there was less of since: a burst between two looks shows as more
    // than that.
    let (mut least, mut kept) = (u64::MAX, u64::MAX);
    let (mut pause, mut paused) = (1, 0);
    loop {
        ticks.tick().await;
        let beyond = beyond_held(&hub);
        (least, kept) = (least.min(beyond), kept.min(beyond));
        if beyond - kept >= WORTHWHILE {
            pause = 1;
        } else if beyond - least < WORTHWHILE {
            continue;
        }
        paused += 1;
        if paused < pause {
            continue;
        }
        // Another time, if it stays: a page goes back only when everything in it is free, and its thread has looked. But
        // what is in use, and not counted, does not go back.
        (pause, paused) = (PAUSES.min(2 * pause), 0);
        ask_threads();
        // They answer when they have no work, and nobody waits for that.
        time::sleep(INTERVAL / 10).await;
        collect(true);
        kept = beyond_held(&hub);
    }
}

/// The resident bytes of the process, less those that events, filters and streams hold.
fn beyond_held(hub: &Hub<Encoded>) -> u64 {
    let stats = hub.stats();
    let held = stats.retained_bytes + stats.filter_bytes + stats.subscriptions * STREAM_BYTES;
    resident_bytes().saturating_sub(held)
}

/// The resident bytes of the process. On Linux without `/proc` they are what the allocator has ever had at once: then each
/// peak leads to collections, until they are as rare as they get.
fn resident_bytes() -> u64 {
    #[cfg(target_os = "linux")]
    if let Some(pages) = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|sizes| sizes.split(' ').nth(1)?.parse::<u64>().ok())
    {
        return pages * rustix::param::page_size() as u64;
    }
    known_to_allocator()
}

/// The resident bytes of the process as mimalloc has them: from the system on macOS and Windows, and by its own count, which
/// does not fall, on others.
#[expect(
    unsafe_code,
    reason = "the bindings of mimalloc have no safe form of it"
)]
fn known_to_allocator() -> u64 {
    let mut resident = 0;
    let unasked = ptr::null_mut;
    // SAFETY: it writes one number where a pointer is one to a number, and skips those that are null.
    unsafe {
        libmimalloc_sys::mi_process_info(
            unasked(),
            unasked(),
            unasked(),
            &raw mut resident,
            unasked(),
            unasked(),
            unasked(),
            unasked(),
        );
    }
    resident as u64
}

/// Asks every thread to return the pages that it has and that are free: what one frees of another's is seen by that other
/// one alone, which on an idle server has no reason to look.
fn ask_threads() {
    ASKED.fetch_add(1, Relaxed);
    // Those that sleep have to wake up for it.
    for _ in 0..Handle::current().metrics().num_workers() {
        tokio::spawn(yield_now());
    }
    // It is not one that parks. If there is none, as at the end, nothing is lost.
    drop(spawn_blocking(|| collect(false)));
}

/// Returns what is free of this thread, if it was asked to. For a thread that has no work, before it parks: nobody waits.
pub(crate) fn on_park() {
    let asked = ASKED.load(Relaxed);
    if ANSWERED.replace(asked) != asked {
        collect(false);
    }
}

/// Returns the free pages of this thread to the allocator, and with `is_forced` what is free to the system, at once.
#[expect(
    unsafe_code,
    reason = "the bindings of mimalloc have no safe form of it"
)]
fn collect(is_forced: bool) {
    // SAFETY: it takes no pointer, and may be called from any thread at any time.
    unsafe { libmimalloc_sys::mi_collect(is_forced) }
}
