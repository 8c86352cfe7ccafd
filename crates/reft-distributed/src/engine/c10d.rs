//! The functions of `c10d.cpp`, and the two objects that they make. All of this crate's `unsafe` is here.
//!
//! Conditions of every block: the functions are those of `c10d.cpp` and catch every exception; pointers to texts end with a zero and live
//! until the call returns, as does the room for the reason; objects are made by the same functions and freed once, by `Drop`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::time::Duration;

use tch::Tensor;

/// Bytes for an error message; longer messages are cut.
const REASON_ROOM: usize = 2048;

/// Bytes for a value of the store.
const VALUE_ROOM: usize = 1 << 20;

#[repr(C)]
struct RawStore {
    _private: [u8; 0],
}

#[repr(C)]
struct RawGroup {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn reft_store_new(
        host: *const c_char,
        port: *mut u16,
        serves: bool,
        prefix: *const c_char,
        limit_ms: i64,
        made: *mut *mut RawStore,
        reason: *mut c_char,
        room: usize,
    ) -> bool;
    fn reft_store_again(
        store: *const RawStore,
        made: *mut *mut RawStore,
        reason: *mut c_char,
        room: usize,
    ) -> bool;
    fn reft_store_set(
        store: *const RawStore,
        key: *const c_char,
        value: *const c_char,
        reason: *mut c_char,
        room: usize,
    ) -> bool;
    fn reft_store_get(
        store: *const RawStore,
        key: *const c_char,
        limit_ms: i64,
        value: *mut c_char,
        value_room: usize,
        reason: *mut c_char,
        room: usize,
    ) -> bool;
    fn reft_store_add(
        store: *const RawStore,
        key: *const c_char,
        number: i64,
        sum: *mut i64,
        reason: *mut c_char,
        room: usize,
    ) -> bool;
    fn reft_libtorch_config(
        value: *mut c_char,
        value_room: usize,
        reason: *mut c_char,
        room: usize,
    ) -> bool;
    fn reft_store_free(store: *mut RawStore);
    fn reft_group_new(
        store: *const RawStore,
        rank: c_int,
        world: c_int,
        host: *const c_char,
        limit_ms: i64,
        made: *mut *mut RawGroup,
        reason: *mut c_char,
        room: usize,
    ) -> bool;
    fn reft_group_sum(
        group: *const RawGroup,
        tensor: *const c_void,
        reason: *mut c_char,
        room: usize,
    ) -> bool;
    fn reft_group_largest(
        group: *const RawGroup,
        tensor: *const c_void,
        reason: *mut c_char,
        room: usize,
    ) -> bool;
    fn reft_group_broadcast(
        group: *const RawGroup,
        tensor: *const c_void,
        reason: *mut c_char,
        room: usize,
    ) -> bool;
    fn reft_group_free(group: *mut RawGroup);
}

/// A connection to the store of a run: texts and counters that its processes share. One thread at a time uses it.
#[derive(Debug)]
pub(crate) struct Store(NonNull<RawStore>);

// SAFETY: the store is a connection with its own lock and without thread-local state, so its owner may be on any thread.
unsafe impl Send for Store {}

/// The connections of this process to all others of its run. All processes call the same functions in the same order.
#[derive(Debug)]
pub(crate) struct Group(NonNull<RawGroup>);

impl Store {
    /// Connects to the store, which this process serves if `serves`.
    pub(crate) fn connect(
        host: &str,
        port: u16,
        serves: bool,
        prefix: &str,
        limit: Duration,
    ) -> Result<Self, String> {
        Ok(Self::new(host, port, serves, prefix, limit)?.0)
    }

    /// Serves a store for others on a port that is free, and says which.
    pub(crate) fn serve(host: &str, limit: Duration) -> Result<(Self, u16), String> {
        Self::new(host, 0, true, "", limit)
    }

    fn new(
        host: &str,
        mut port: u16,
        serves: bool,
        prefix: &str,
        limit: Duration,
    ) -> Result<(Self, u16), String> {
        let (host, prefix) = (text(host)?, text(prefix)?);
        let mut made = ptr::null_mut();
        told(|reason, room| {
            let (host, prefix, limit) = (host.as_ptr(), prefix.as_ptr(), milliseconds(limit));
            let port = &mut port;
            // SAFETY: see the module; `made` and `port` are written only where the function succeeds.
            unsafe { reft_store_new(host, port, serves, prefix, limit, &mut made, reason, room) }
        })?;
        Ok((NonNull::new(made).map(Self).ok_or_else(nothing_made)?, port))
    }

    /// Another connection to the same store.
    pub(crate) fn again(&self) -> Result<Self, String> {
        let mut made = ptr::null_mut();
        told(|reason, room| {
            // SAFETY: see the module; `made` is written only where the function succeeds.
            unsafe { reft_store_again(self.0.as_ptr(), &mut made, reason, room) }
        })?;
        NonNull::new(made).map(Self).ok_or_else(nothing_made)
    }

    /// Gives a key a value.
    pub(crate) fn set(&self, key: &str, value: &str) -> Result<(), String> {
        let (key, value) = (text(key)?, text(value)?);
        told(|reason, room| {
            // SAFETY: see the module.
            unsafe { reft_store_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr(), reason, room) }
        })
    }

    /// The value of a key, once a process has given it one.
    pub(crate) fn get(&self, key: &str, limit: Duration) -> Result<String, String> {
        let key = text(key)?;
        let mut value = vec![0; VALUE_ROOM];
        told(|reason, room| {
            let (store, key, value, limit) =
                (self.0.as_ptr(), key.as_ptr(), value.as_mut_ptr(), milliseconds(limit));
            // SAFETY: see the module; `value` has as many bytes as the call says.
            unsafe { reft_store_get(store, key, limit, value.cast(), VALUE_ROOM, reason, room) }
        })?;
        Ok(until_zero(&value))
    }

    /// Adds to the counter of a key, which begins at 0, and gives the sum.
    pub(crate) fn add(&self, key: &str, number: i64) -> Result<i64, String> {
        let key = text(key)?;
        let mut sum = 0;
        told(|reason, room| {
            // SAFETY: see the module; `sum` lives until the call returns.
            unsafe { reft_store_add(self.0.as_ptr(), key.as_ptr(), number, &mut sum, reason, room) }
        })?;
        Ok(sum)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by `connect` or `again`, and freed nowhere else.
        unsafe { reft_store_free(self.0.as_ptr()) }
    }
}

impl Group {
    /// Connects this process to all others. Each process is reached at the address `host`, or without it at the address of its machine's name.
    pub(crate) fn connect(
        store: &Store,
        rank: usize,
        world: usize,
        host: Option<&str>,
        limit: Duration,
    ) -> Result<Self, String> {
        let number = |n: usize| c_int::try_from(n).map_err(|error| error.to_string());
        let (rank, world, host) = (number(rank)?, number(world)?, host.map(text).transpose()?);
        let mut made = ptr::null_mut();
        told(|reason, room| {
            let host = host.as_ref().map_or(ptr::null(), |host| host.as_ptr());
            let (store, limit) = (store.0.as_ptr(), milliseconds(limit));
            // SAFETY: see the module; the function knows that `host` may be null, and the group keeps the store alive by itself.
            unsafe { reft_group_new(store, rank, world, host, limit, &mut made, reason, room) }
        })?;
        NonNull::new(made).map(Self).ok_or_else(nothing_made)
    }

    /// Replaces a tensor on the host by its sum over all processes.
    pub(crate) fn sum(&self, tensor: &mut Tensor) -> Result<(), String> {
        told(|reason, room| {
            // SAFETY: see the module; the call has exclusive access to the tensor and returns when the sum is finished.
            unsafe { reft_group_sum(self.0.as_ptr(), tensor.as_ptr().cast(), reason, room) }
        })
    }

    /// Replaces each number of a tensor on the host by the largest that a process has.
    pub(crate) fn largest(&self, tensor: &mut Tensor) -> Result<(), String> {
        told(|reason, room| {
            // SAFETY: as for `sum`.
            unsafe { reft_group_largest(self.0.as_ptr(), tensor.as_ptr().cast(), reason, room) }
        })
    }

    /// Replaces a tensor on the host by the first process's.
    pub(crate) fn broadcast(&self, tensor: &mut Tensor) -> Result<(), String> {
        told(|reason, room| {
            // SAFETY: as for `sum`.
            unsafe { reft_group_broadcast(self.0.as_ptr(), tensor.as_ptr().cast(), reason, room) }
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: made by `connect`, and freed nowhere else.
        unsafe { reft_group_free(self.0.as_ptr()) }
    }
}

/// The version of the libtorch that is loaded: "2.11.0"; empty if it does not say.
pub(crate) fn libtorch_version() -> String {
    let mut config = vec![0; VALUE_ROOM];
    let said = told(|reason, room| {
        // SAFETY: see the module; `config` has as many bytes as the call says.
        unsafe { reft_libtorch_config(config.as_mut_ptr().cast(), VALUE_ROOM, reason, room) }
    });
    let config = said.map(|()| until_zero(&config)).unwrap_or_default();
    let (_, rest) = config.split_once("TORCH_VERSION=").unwrap_or_default();
    let digit = |c: char| !c.is_ascii_digit() && c != '.';
    rest[..rest.find(digit).unwrap_or(rest.len())].to_owned()
}

/// Calls a function with a buffer for its error message, and returns the message if the function fails.
fn told(call: impl FnOnce(*mut c_char, usize) -> bool) -> Result<(), String> {
    let mut reason = vec![0u8; REASON_ROOM];
    match call(reason.as_mut_ptr().cast(), REASON_ROOM) {
        true => Ok(()),
        false => Err(first_line(&until_zero(&reason))),
    }
}

fn until_zero(bytes: &[u8]) -> String {
    let found = CStr::from_bytes_until_nul(bytes).unwrap_or_default();
    found.to_string_lossy().into_owned()
}

/// libtorch's reason, without the place in its sources: `[file:line] `.
fn first_line(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default().trim();
    let behind_place = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    behind_place.map_or(line, |(_, what)| what).to_owned()
}

fn text(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("a zero byte in {text:?}"))
}

fn milliseconds(limit: Duration) -> i64 {
    i64::try_from(limit.as_millis()).unwrap_or(i64::MAX)
}

fn nothing_made() -> String {
    "nothing was made".to_owned()
}
