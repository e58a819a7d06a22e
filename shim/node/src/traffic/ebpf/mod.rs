//! eBPF (kernel, bpf/index.rst): puts programs together and has the kernel load them, with the maps
//! that they share with us.

mod assemble;
mod kernel;

pub use assemble::{Assembler, Helper, Insn, Register, Size};
pub use kernel::{load, Map, MapKind};
