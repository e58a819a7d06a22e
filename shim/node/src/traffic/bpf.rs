//! Puts classic BPF programs together (kernel, networking/filter.rst): a block of instructions
//! either ends the program or goes on after its last instruction.

pub use libc::sock_filter as Op;

/// What the program returns for a frame that may pass.
const PASS: u32 = u32::MAX;
/// Goes on if one of the tests succeeds. A test that fails skips the one instruction after it.
pub fn any(tests: Vec<Vec<Op>>) -> Vec<Op> {
    let mut left: usize = tests.iter().map(|test| test.len() + 1).sum();
    let mut block = Vec::new();
    for test in tests {
        left -= test.len() + 1;
        block.extend(test);
        block.push(skip(left + 1));
    }
    block.push(refuse());
    block
}

/// Runs a block, which ends the program, for one value.
pub fn when(value: u32, block: Vec<Op>) -> Vec<Op> {
    let mut all = vec![is_or_skip(value, 1, 0), skip(block.len())];
    all.extend(block);
    all
}

/// Runs a block for all values but one; both cases go on after it.
pub fn unless(value: u32, block: Vec<Op>) -> Vec<Op> {
    let mut all = vec![is_or_skip(value, 0, 1), skip(block.len())];
    all.extend(block);
    all
}

pub fn must(value: u32) -> [Op; 2] {
    [is_or_skip(value, 1, 0), refuse()]
}

pub fn must_not(value: u32) -> [Op; 2] {
    [is_or_skip(value, 0, 1), refuse()]
}

pub fn word(at: u32) -> Op {
    load(libc::BPF_W, at)
}

pub fn half(at: u32) -> Op {
    load(libc::BPF_H, at)
}

pub fn byte(at: u32) -> Op {
    load(libc::BPF_B, at)
}

pub fn load(size: u32, at: u32) -> Op {
    op(libc::BPF_LD | libc::BPF_ABS | size, 0, 0, at)
}

pub fn is_or_skip(value: u32, if_equal: u8, otherwise: u8) -> Op {
    let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    op(code, if_equal, otherwise, value)
}

pub fn skip(count: usize) -> Op {
    op(libc::BPF_JMP | libc::BPF_JA, 0, 0, count as u32)
}

pub fn pass() -> Op {
    op(libc::BPF_RET | libc::BPF_K, 0, 0, PASS)
}

pub fn refuse() -> Op {
    op(libc::BPF_RET | libc::BPF_K, 0, 0, 0)
}

pub fn op(code: u32, jt: u8, jf: u8, k: u32) -> Op {
    Op {
        code: code as u16,
        jt,
        jf,
        k,
    }
}
