// A C interface to libtorch's TCPStore and ProcessGroupGloo. Every function that can fail returns whether it did not, and writes why into
// `reason`, `room` bytes with the zero at the end. No exception leaves.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <ATen/Version.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

// Where another libtorch has it not, the program still begins, and says what it found. Nothing else here may be data of libtorch: functions
// are looked up when they are called, data before the program begins.
extern int FLAGS_caffe2_log_level __attribute__((weak));

using c10d::ProcessGroupGloo;
using std::chrono::milliseconds;

// Both were compared with what gloo's own headers give: with other sizes the declarations in include/gloo are not enough.
static_assert(sizeof(ProcessGroupGloo) == 488, "ProcessGroupGloo is not that of libtorch 2.11");
static_assert(sizeof(ProcessGroupGloo::Options) == 176, "its options are not those of libtorch 2.11");

struct reft_store {
  c10::intrusive_ptr<c10d::Store> store;
};

struct reft_group {
  c10::intrusive_ptr<ProcessGroupGloo> group;
};

namespace {
void say(const std::string& what, char* reason, size_t room) {
  size_t length = std::min(what.size(), room - 1);
  std::memcpy(reason, what.data(), length);
  reason[length] = 0;
}

template <typename Act>
bool tried(char* reason, size_t room, Act act) {
  try {
    act();
    return true;
  } catch (const std::exception& error) {
    say(error.what(), reason, room); // of libtorch's own errors the first line, before a backtrace
  } catch (...) {
    say("an exception without a text", reason, room);
  }
  return false;
}
} // namespace

extern "C" {
// Port 0 is a free one.
bool reft_store_new(
    const char* host, uint16_t* port, bool serves, const char* prefix, int64_t limit_ms, reft_store** made, char* reason, size_t room) {
  return tried(reason, room, [&] {
    // What fails is this program's to tell; libtorch's own log, with the stack of every lost connection, is for those who ask for it.
    if (std::getenv("TORCH_CPP_LOG_LEVEL")) {
      c10::initLogging();
    } else if (&FLAGS_caffe2_log_level) {
      FLAGS_caffe2_log_level = 3;
    }
    c10d::TCPStoreOptions options;
    options.port = *port;
    options.isServer = serves;
    options.waitWorkers = false;
    options.timeout = milliseconds(limit_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *port = store->getPort();
    *made = new reft_store{c10::make_intrusive<c10d::PrefixStore>(prefix, store)};
  });
}

bool reft_store_again(const reft_store* store, reft_store** made, char* reason, size_t room) {
  return tried(reason, room, [&] { *made = new reft_store{store->store->clone()}; });
}

bool reft_store_set(const reft_store* store, const char* key, const char* value, char* reason, size_t room) {
  return tried(reason, room, [&] { store->store->set(key, std::string(value)); });
}

// `value` has `value_room` bytes: a longer one is an error.
bool reft_store_get(const reft_store* store, const char* key, int64_t limit_ms, char* value, size_t value_room, char* reason, size_t room) {
  return tried(reason, room, [&] {
    store->store->wait({key}, milliseconds(limit_ms));
    std::string found = store->store->get_to_str(key);
    TORCH_CHECK(found.size() < value_room, "the value of ", key, " has ", found.size(), " bytes");
    say(found, value, value_room);
  });
}

bool reft_store_add(const reft_store* store, const char* key, int64_t number, int64_t* sum, char* reason, size_t room) {
  return tried(reason, room, [&] { *sum = store->store->add(key, number); });
}

// How this libtorch was built: "PyTorch built with: … TORCH_VERSION=2.11.0, …".
bool reft_libtorch_config(char* value, size_t value_room, char* reason, size_t room) {
  return tried(reason, room, [&] { say(at::show_config(), value, value_room); });
}

void reft_store_free(reft_store* store) {
  delete store;
}

// Without `host` the address that others connect to is that of GLOO_SOCKET_IFNAME or of this machine's name.
bool reft_group_new(
    const reft_store* store, int rank, int world, const char* host, int64_t limit_ms, reft_group** made, char* reason, size_t room) {
  return tried(reason, room, [&] {
    milliseconds limit(limit_ms);
    c10::intrusive_ptr<ProcessGroupGloo::Options> options;
    if (host) {
      options = ProcessGroupGloo::Options::create(limit);
      options->devices.push_back(ProcessGroupGloo::createDeviceForHostname(host));
    } else {
      options = ProcessGroupGloo::Options::create_default(limit);
    }
    *made = new reft_group{c10::make_intrusive<ProcessGroupGloo>(store->store, rank, world, options)};
  });
}

bool reft_group_sum(const reft_group* group, const void* tensor, char* reason, size_t room) {
  return tried(reason, room, [&] {
    std::vector<at::Tensor> tensors{*static_cast<const at::Tensor*>(tensor)};
    group->group->allreduce(tensors)->wait();
  });
}

bool reft_group_largest(const reft_group* group, const void* tensor, char* reason, size_t room) {
  return tried(reason, room, [&] {
    std::vector<at::Tensor> tensors{*static_cast<const at::Tensor*>(tensor)};
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp::MAX;
    group->group->allreduce(tensors, options)->wait();
  });
}

bool reft_group_broadcast(const reft_group* group, const void* tensor, char* reason, size_t room) {
  return tried(reason, room, [&] {
    std::vector<at::Tensor> tensors{*static_cast<const at::Tensor*>(tensor)};
    group->group->broadcast(tensors)->wait();
  });
}

void reft_group_free(reft_group* group) {
  delete group;
}
}
