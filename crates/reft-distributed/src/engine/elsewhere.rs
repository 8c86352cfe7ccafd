//! Stands in for the process groups on platforms where they were not tried.

use std::sync::Arc;
use std::time::Duration;

use tch::{Device, Tensor};

use crate::Error;

/// Empty: without process groups no version is compared.
pub(crate) fn libtorch_version() -> String {
    String::new()
}

/// No value exists: this platform has no store.
#[derive(Debug)]
pub(crate) enum Store {}

/// No value exists: this platform has no process group.
#[derive(Debug)]
pub(crate) enum Group {}

impl Store {
    pub(crate) fn connect(_: &str, _: u16, _: bool, _: &str, _: Duration) -> Result<Self, String> {
        Err(Error::Unsupported.to_string())
    }

    pub(crate) fn serve(_: &str, _: Duration) -> Result<(Self, u16), String> {
        Err(Error::Unsupported.to_string())
    }

    pub(crate) fn again(&self) -> Result<Self, String> {
        match *self {}
    }

    pub(crate) fn set(&self, _: &str, _: &str) -> Result<(), String> {
        match *self {}
    }

    pub(crate) fn get(&self, _: &str, _: Duration) -> Result<String, String> {
        match *self {}
    }

    pub(crate) fn add(&self, _: &str, _: i64) -> Result<i64, String> {
        match *self {}
    }
}

impl Group {
    pub(crate) fn connect(
        store: &Store,
        _: usize,
        _: usize,
        _: Option<&str>,
        _: Duration,
    ) -> Result<Self, String> {
        match *store {}
    }

    pub(crate) fn sum(&self, _: &mut Tensor) -> Result<(), String> {
        match *self {}
    }

    pub(crate) fn largest(&self, _: &mut Tensor) -> Result<(), String> {
        match *self {}
    }

    pub(crate) fn broadcast(&self, _: &mut Tensor) -> Result<(), String> {
        match *self {}
    }
}

/// No value exists: NCCL cannot be loaded on this platform.
#[derive(Debug)]
pub(crate) enum Nccl {}

/// No value exists: NCCL cannot be loaded on this platform.
#[derive(Debug)]
pub(crate) enum Communicator {}

impl Nccl {
    pub(crate) fn open() -> Result<Self, String> {
        Err(Error::Unsupported.to_string())
    }

    pub(crate) fn identity(&self, _: usize) -> Result<String, String> {
        match *self {}
    }

    pub(crate) fn unique_id(&self) -> Result<String, String> {
        match *self {}
    }

    pub(crate) fn connect(
        self: &Arc<Self>,
        _: &str,
        _: (usize, usize),
        _: usize,
    ) -> Result<Communicator, String> {
        match **self {}
    }
}

impl Communicator {
    pub(crate) fn device(&self) -> Device {
        match *self {}
    }

    pub(crate) fn sum(&self, _: &mut Tensor) -> Result<(), String> {
        match *self {}
    }

    pub(crate) fn broadcast(&self, _: &mut Tensor) -> Result<(), String> {
        match *self {}
    }

    pub(crate) fn is_done(&self) -> Result<bool, String> {
        match *self {}
    }

    pub(crate) fn abort(self) {
        match self {}
    }
}
