use tch::{Device, Tensor};

/// Sends a tensor of any shape from the host to a device; on a CPU it is the tensor itself.
///
/// The copy to a GPU uses pinned memory and is queued in the GPU's stream; the host does not wait for it. libtorch
/// keeps the pinned block until the copy is done. If no memory can be pinned, the host waits.
pub fn send(host: &Tensor, device: Device) -> Tensor {
    if !device.is_cuda() || host.device() != Device::Cpu {
        return host.to_device(device);
    }
    // not `pin_memory`: libtorch 2.11 warns about its argument, which tch cannot omit
    match host.f_internal_pin_memory(device) {
        Ok(pinned) => pinned.to_device_(device, pinned.kind(), true, false),
        Err(_) => host.to_device(device),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn on_a_cpu_nothing_is_copied() {
        let host = Tensor::arange(6, (Kind::Int64, Device::Cpu)).view([2, 3]);
        let sent = send(&host, Device::Cpu);
        assert_eq!(sent.data_ptr(), host.data_ptr());
        assert_eq!((sent.kind(), sent.size()), (Kind::Int64, vec![2, 3]));
    }
}
