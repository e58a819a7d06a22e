//! Puts eBPF programs together (kernel, bpf/standardization/instruction-set.rst). Jumps go to
//! labels, which must come later in the program: the kernel's verifier then sees no loop.

use std::{
    collections::HashMap,
    os::fd::{AsRawFd, BorrowedFd},
};

/// An instruction as the kernel reads it (linux/bpf.h, `struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    code: u8,
    /// The destination in the low half, the source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A register. A call changes `R0` to `R5`; `R10` is the end of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// The width of a load or store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Byte,
    Half,
    Word,
    Double,
}

/// The kernel's functions that programs call (linux/bpf.h, `__BPF_FUNC_MAPPER`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    TimeNs = 5,
    StoreBytes = 9,
    Redirect = 23,
    LoadBytes = 26,
}

const CLASS_LD: u8 = 0;
const CLASS_LDX: u8 = 1;
const CLASS_ST: u8 = 2;
const CLASS_STX: u8 = 3;
const CLASS_JMP: u8 = 5;
const CLASS_ALU64: u8 = 7;
/// The mode of loads and stores of memory.
const MEM: u8 = 0x60;
const ATOMIC: u8 = 0xc0;
/// Marks that the second operand is a register.
const BY_REGISTER: u8 = 0x08;
/// Marks the immediate of a load as a map's descriptor (linux/bpf.h, BPF_PSEUDO_MAP_FD).
const PSEUDO_MAP_FD: u8 = 1;

const ADD: u8 = 0x00;
const AND: u8 = 0x50;
const LSH: u8 = 0x60;
const RSH: u8 = 0x70;
const MOV: u8 = 0xb0;

const ALWAYS: u8 = 0x00;
const EQUAL: u8 = 0x10;
const GREATER: u8 = 0x20;
const NOT_EQUAL: u8 = 0x50;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;

/// A program that is being put together.
#[derive(Debug, Default)]
pub struct Assembler {
    insns: Vec<Insn>,
    /// The jumps to each label that has not come yet.
    waiting: HashMap<String, Vec<usize>>,
}

impl Assembler {
    /// Returns the program.
    ///
    /// # Panics
    /// A jump goes to a label that has not come.
    pub fn finish(self) -> Vec<Insn> {
        assert!(self.waiting.is_empty(), "no label {:?}", self.waiting);
        self.insns
    }

    /// Marks the place to which the jumps to `name` so far go.
    pub fn label(&mut self, name: &str) {
        let here = self.insns.len();
        for jump in self.waiting.remove(name).unwrap_or_default() {
            self.insns[jump].offset = (here - jump - 1) as i16;
        }
    }

    pub fn set(&mut self, to: Register, value: i32) {
        self.op(CLASS_ALU64 | MOV, to, None, 0, value);
    }

    pub fn copy(&mut self, to: Register, from: Register) {
        self.op(CLASS_ALU64 | MOV | BY_REGISTER, to, Some(from), 0, 0);
    }

    pub fn add(&mut self, to: Register, value: i32) {
        self.op(CLASS_ALU64 | ADD, to, None, 0, value);
    }

    pub fn add_register(&mut self, to: Register, from: Register) {
        self.op(CLASS_ALU64 | ADD | BY_REGISTER, to, Some(from), 0, 0);
    }

    pub fn and(&mut self, to: Register, value: i32) {
        self.op(CLASS_ALU64 | AND, to, None, 0, value);
    }

    pub fn shift_left(&mut self, to: Register, bits: i32) {
        self.op(CLASS_ALU64 | LSH, to, None, 0, bits);
    }

    pub fn shift_right(&mut self, to: Register, bits: i32) {
        self.op(CLASS_ALU64 | RSH, to, None, 0, bits);
    }

    /// Loads from the memory at a register's address and an offset.
    pub fn load(&mut self, size: Size, to: Register, from: Register, offset: i16) {
        self.op(CLASS_LDX | MEM | size.code(), to, Some(from), offset, 0);
    }

    pub fn store(&mut self, size: Size, to: Register, offset: i16, from: Register) {
        self.op(CLASS_STX | MEM | size.code(), to, Some(from), offset, 0);
    }

    pub fn store_value(&mut self, size: Size, to: Register, offset: i16, value: i32) {
        self.op(CLASS_ST | MEM | size.code(), to, None, offset, value);
    }

    /// Adds a register to a number in memory, as one step for all cpus.
    pub fn add_to_memory(&mut self, to: Register, offset: i16, from: Register) {
        let code = CLASS_STX | ATOMIC | Size::Double.code();
        self.op(code, to, Some(from), offset, i32::from(ADD));
    }

    /// Loads a map's address, as calls take it.
    pub fn map(&mut self, to: Register, map: BorrowedFd<'_>) {
        let code = CLASS_LD | 0x18;
        self.insns.push(Insn {
            code,
            registers: to as u8 | (PSEUDO_MAP_FD << 4),
            offset: 0,
            immediate: map.as_raw_fd(),
        });
        // The upper half of the number.
        self.op(0, Register::R0, None, 0, 0);
    }

    /// Sets a register to an address on the stack, so many bytes before its end.
    pub fn stack(&mut self, to: Register, offset: i16) {
        self.copy(to, Register::R10);
        self.add(to, offset.into());
    }

    pub fn jump(&mut self, to: &str) {
        self.jump_if(ALWAYS, Register::R0, 0, to);
    }

    pub fn jump_if_equal(&mut self, register: Register, value: i32, to: &str) {
        self.jump_if(EQUAL, register, value, to);
    }

    pub fn jump_if_not_equal(&mut self, register: Register, value: i32, to: &str) {
        self.jump_if(NOT_EQUAL, register, value, to);
    }

    /// Jumps if the first register is greater than the second, as numbers without a sign.
    pub fn jump_if_greater(&mut self, register: Register, than: Register, to: &str) {
        self.waiting(to);
        let code = CLASS_JMP | GREATER | BY_REGISTER;
        self.op(code, register, Some(than), 0, 0);
    }

    /// Calls a function of the kernel with `R1` to `R5`. The result is in `R0`.
    pub fn call(&mut self, helper: Helper) {
        self.op(CLASS_JMP | CALL, Register::R0, None, 0, helper as i32);
    }

    /// Ends the program with a result.
    pub fn end(&mut self, result: i32) {
        self.set(Register::R0, result);
        self.exit();
    }

    /// Ends the program with the result in `R0`.
    pub fn exit(&mut self) {
        self.op(CLASS_JMP | EXIT, Register::R0, None, 0, 0);
    }

    fn jump_if(&mut self, condition: u8, register: Register, value: i32, to: &str) {
        self.waiting(to);
        self.op(CLASS_JMP | condition, register, None, 0, value);
    }

    fn waiting(&mut self, label: &str) {
        let here = self.insns.len();
        self.waiting.entry(label.to_owned()).or_default().push(here);
    }

    fn op(&mut self, code: u8, to: Register, from: Option<Register>, offset: i16, value: i32) {
        let from = from.map_or(0, |from| from as u8);
        self.insns.push(Insn {
            code,
            registers: to as u8 | (from << 4),
            offset,
            immediate: value,
        });
    }
}

impl Size {
    fn code(self) -> u8 {
        match self {
            Self::Word => 0x00,
            Self::Half => 0x08,
            Self::Byte => 0x10,
            Self::Double => 0x18,
        }
    }
}
