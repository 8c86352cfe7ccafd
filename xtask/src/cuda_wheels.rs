//! The GPU half of libtorch, which `cargo xtask setup --cuda` unpacks to `libtorch/cuda/`.
//!
//! It has its own folder, so that builds are the same with and without it. If `libtorch_cuda.so` were beside the CPU libraries, torch-sys would
//! link CUDA, and the program would not start without a GPU's libraries. `reft` loads the GPU half when it starts. The run path of the GPU half
//! is its own folder. The libraries that it shares with the CPU half (libtorch_cpu, libc10, libcudart) are already loaded.

use crate::platform::{LINUX_TAGS, Piece, Platform, TORCH_WHEEL_LINUX, Wheel};

/// One wheel of NVIDIA's.
const fn nvidia(
    requirement: &'static str,
    file_name: &'static str,
    sha256: &'static str,
    megabytes: u32,
) -> Wheel {
    Wheel { requirement, file_name, sha256, megabytes, tags: LINUX_TAGS }
}

/// The metadata of torch 2.11.0 asks for these versions.
pub static LINUX_X86_64_CUDA: Platform = Platform {
    wheels: &[
        (
            TORCH_WHEEL_LINUX,
            &[
                Piece { from: "torch/lib/libtorch_cuda.so", to: "libtorch_cuda.so" },
                Piece { from: "torch/lib/libtorch_cuda_linalg.so", to: "libtorch_cuda_linalg.so" },
                Piece { from: "torch/lib/libtorch_nvshmem.so", to: "libtorch_nvshmem.so" },
                Piece { from: "torch/lib/libc10_cuda.so", to: "libc10_cuda.so" },
                Piece { from: "torch/lib/libcaffe2_nvrtc.so", to: "libcaffe2_nvrtc.so" },
            ],
        ),
        (
            nvidia(
                "nvidia-cublas==13.1.0.3",
                "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_x86_64.whl",
                "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
                423,
            ),
            &[
                Piece { from: "nvidia/cu13/lib/libcublas.so.13", to: "libcublas.so.13" },
                Piece { from: "nvidia/cu13/lib/libcublasLt.so.13", to: "libcublasLt.so.13" },
            ],
        ),
        (
            nvidia(
                "nvidia-cudnn-cu13==9.19.0.56",
                "nvidia_cudnn_cu13-9.19.0.56-py3-none-manylinux_2_27_x86_64.whl",
                "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf",
                366,
            ),
            &[Piece { from: "nvidia/cudnn/lib/", to: "" }],
        ),
        (
            nvidia(
                "nvidia-cufft==12.0.0.61",
                "nvidia_cufft-12.0.0.61-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
                214,
            ),
            &[Piece { from: "nvidia/cu13/lib/libcufft.so.12", to: "libcufft.so.12" }],
        ),
        (
            nvidia(
                "nvidia-cufile==1.15.1.6",
                "nvidia_cufile-1.15.1.6-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
                1,
            ),
            &[Piece { from: "nvidia/cu13/lib/libcufile.so.0", to: "libcufile.so.0" }],
        ),
        (
            nvidia(
                "nvidia-curand==10.4.0.35",
                "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_x86_64.whl",
                "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
                60,
            ),
            &[Piece { from: "nvidia/cu13/lib/libcurand.so.10", to: "libcurand.so.10" }],
        ),
        (
            nvidia(
                "nvidia-cusolver==12.0.4.66",
                "nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_x86_64.whl",
                "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
                201,
            ),
            &[Piece { from: "nvidia/cu13/lib/libcusolver.so.12", to: "libcusolver.so.12" }],
        ),
        (
            nvidia(
                "nvidia-cusparse==12.6.3.3",
                "nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
                146,
            ),
            &[Piece { from: "nvidia/cu13/lib/libcusparse.so.12", to: "libcusparse.so.12" }],
        ),
        (
            nvidia(
                "nvidia-cusparselt-cu13==0.8.0",
                "nvidia_cusparselt_cu13-0.8.0-py3-none-manylinux2014_x86_64.whl",
                "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd",
                170,
            ),
            &[Piece { from: "nvidia/cusparselt/lib/libcusparseLt.so.0", to: "libcusparseLt.so.0" }],
        ),
        (
            nvidia(
                "nvidia-nccl-cu13==2.28.9",
                "nvidia_nccl_cu13-2.28.9-py3-none-manylinux_2_18_x86_64.whl",
                "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42",
                196,
            ),
            &[Piece { from: "nvidia/nccl/lib/libnccl.so.2", to: "libnccl.so.2" }],
        ),
        (
            nvidia(
                "nvidia-nvshmem-cu13==3.4.5",
                "nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
                60,
            ),
            &[Piece {
                from: "nvidia/nvshmem/lib/libnvshmem_host.so.3",
                to: "libnvshmem_host.so.3",
            }],
        ),
        (
            nvidia(
                "nvidia-nvjitlink==13.0.88",
                "nvidia_nvjitlink-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
                "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
                41,
            ),
            &[Piece { from: "nvidia/cu13/lib/libnvJitLink.so.13", to: "libnvJitLink.so.13" }],
        ),
        (
            nvidia(
                "nvidia-cuda-nvrtc==13.0.88",
                "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
                "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
                90,
            ),
            &[
                Piece { from: "nvidia/cu13/lib/libnvrtc.so.13", to: "libnvrtc.so.13" },
                Piece {
                    from: "nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
                    to: "libnvrtc-builtins.so.13.0",
                },
            ],
        ),
    ],
    shim: false,
    essential: &[
        "libtorch_cuda.so",
        "libtorch_cuda_linalg.so",
        "libtorch_nvshmem.so",
        "libc10_cuda.so",
        "libcublas.so.13",
        "libcublasLt.so.13",
        "libcudnn.so.9",
        "libcufft.so.12",
        "libcufile.so.0",
        "libcurand.so.10",
        "libcusolver.so.12",
        "libcusparse.so.12",
        "libcusparseLt.so.0",
        "libnccl.so.2",
        "libnvJitLink.so.13",
        "libnvrtc.so.13",
        "libnvshmem_host.so.3",
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_library_that_is_needed_comes_from_a_wheel() {
        let pieces = || LINUX_X86_64_CUDA.wheels.iter().flat_map(|(_, pieces)| *pieces);
        for file in LINUX_X86_64_CUDA.essential.iter().filter(|file| **file != "libcudnn.so.9") {
            assert_eq!(pieces().filter(|piece| piece.to == *file).count(), 1, "{file}");
        }
        for piece in pieces() {
            assert!(piece.to.is_empty() == piece.from.ends_with('/'), "{}", piece.from);
            assert!(piece.from.ends_with(piece.to), "{} becomes {}", piece.from, piece.to);
        }
    }
}
