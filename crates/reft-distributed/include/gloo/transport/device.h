// libtorch brings a header that names gloo's, and not gloo's. What is declared here is what that header needs to be read; no object of these
// types is made, and none of their functions is called, outside libtorch.
#pragma once

namespace gloo::transport {
class Device;
class UnboundBuffer;
} // namespace gloo::transport
