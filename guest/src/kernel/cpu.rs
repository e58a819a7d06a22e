//! What the cpu says of itself.

use std::arch::x86_64::__cpuid;

/// Whether QEMU emulates this machine, which is then some ten times slower than its host. The
/// hypervisor's signature is in CPUID leaf 0x40000000 (QEMU, target/i386/cpu.c).
pub fn is_emulated() -> bool {
    const HYPERVISOR: u32 = 0x4000_0000;
    // "TCGTCGTCGTCG", four bytes in each register.
    const TCG: [u32; 3] = [
        u32::from_le_bytes(*b"TCGT"),
        u32::from_le_bytes(*b"CGTC"),
        u32::from_le_bytes(*b"GTCG"),
    ];
    let said = __cpuid(HYPERVISOR);
    [said.ebx, said.ecx, said.edx] == TCG
}
