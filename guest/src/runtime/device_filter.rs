//! Turns the cgroup's device rules into a BPF program that the kernel runs for each use of a device
//! node. Cgroup v2 has no files for such rules.
//!
//! The last rule that matches decides. As in runc, the rules for what every container needs come
//! after the spec's rules.

use std::{
    fs::File,
    io,
    mem::size_of,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::error::{Error, Result};

/// Allowed for every container: making nodes (but not opening them), and the devices that
/// libcontainer puts in /dev, with terminals and tun. From runc's libcontainer/specconv
/// `AllowedDevices`.
const ALWAYS: &[Rule] = &[
    Rule::allow(CHAR, None, None, MKNOD),
    Rule::allow(BLOCK, None, None, MKNOD),
    Rule::allow(CHAR, Some(1), Some(3), ALL),
    Rule::allow(CHAR, Some(1), Some(5), ALL),
    Rule::allow(CHAR, Some(1), Some(7), ALL),
    Rule::allow(CHAR, Some(1), Some(8), ALL),
    Rule::allow(CHAR, Some(1), Some(9), ALL),
    Rule::allow(CHAR, Some(5), Some(0), ALL),
    Rule::allow(CHAR, Some(5), Some(2), ALL),
    Rule::allow(CHAR, Some(10), Some(200), ALL),
    Rule::allow(CHAR, Some(136), None, ALL),
];

// From include/uapi/linux/bpf.h.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

// Operations of the instruction set (Documentation/bpf/instruction-set.rst).
const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const JUMP_IF_NOT: u8 = 0x55;
const JUMP_IF: u8 = 0x15;
const JUMP_IF_NOT_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// The registers that the first instructions fill.
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

struct Rule {
    allow: bool,
    /// `None` stands for any type.
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Rule {
    const fn allow(kind: i32, major: Option<i32>, minor: Option<i32>, access: i32) -> Rule {
        Rule {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access,
        }
    }

    fn of(rule: &LinuxDeviceCgroup) -> Rule {
        let number = |number: Option<i64>| number.filter(|n| *n >= 0).map(|n| n as i32);
        let access = match rule.access().as_deref() {
            None | Some("") => ALL,
            Some(letters) => letters.chars().fold(0, |access, letter| {
                access
                    | match letter {
                        'r' => READ,
                        'w' => WRITE,
                        'm' => MKNOD,
                        _ => 0,
                    }
            }),
        };
        Rule {
            allow: rule.allow(),
            kind: match rule.typ() {
                Some(LinuxDeviceType::B) => Some(BLOCK),
                Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHAR),
                _ => None,
            },
            major: number(rule.major()),
            minor: number(rule.minor()),
            access,
        }
    }
}

/// One instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// The destination in the lower four bits, the source in the upper four.
    registers: u8,
    offset: i16,
    immediate: i32,
}

fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate,
    }
}

/// Applies the rules of the spec to a cgroup. Without rules, everything stays allowed.
pub fn attach(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    let rules: Vec<Rule> = rules.iter().map(Rule::of).collect();
    let dir = File::open(cgroup).map_err(Error::file("open", cgroup))?;
    load(&program(&rules))
        .and_then(|program| attach_to(&dir, &program))
        .map_err(Error::file("restrict devices of", cgroup))
}

fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        // The fields of struct bpf_cgroup_dev_ctx: access_type (access << 16 | type), major, minor.
        op(LOAD_WORD, TYPE, 1, 0, 0),
        op(AND, TYPE, 0, 0, 0xffff),
        op(LOAD_WORD, ACCESS, 1, 0, 0),
        op(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        op(LOAD_WORD, MAJOR, 1, 4, 0),
        op(LOAD_WORD, MINOR, 1, 8, 0),
    ];
    for rule in rules.iter().chain(ALWAYS).rev() {
        let mut tests = Vec::new();
        for (register, value) in [(TYPE, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
            tests.extend(value.map(|value| op(JUMP_IF_NOT, register, 0, 0, value)));
        }
        if rule.access != ALL {
            tests.push(op(MOVE_REGISTER, 1, ACCESS, 0, 0));
            tests.push(op(AND, 1, 0, 0, rule.access));
            // A rule that allows matches only if all requested rights are among its own. A rule
            // that denies matches if any of them is.
            tests.push(match rule.allow {
                true => op(JUMP_IF_NOT_REGISTER, 1, ACCESS, 0, 0),
                false => op(JUMP_IF, 1, 0, 0, 0),
            });
        }
        // A test that fails jumps to the next rule, past the two instructions of the verdict.
        let length = tests.len();
        for (number, test) in tests.iter_mut().enumerate() {
            if matches!(test.code, JUMP_IF_NOT | JUMP_IF | JUMP_IF_NOT_REGISTER) {
                test.offset = (length - number + 1) as i16;
            }
        }
        program.append(&mut tests);
        program.push(op(MOVE, 0, 0, 0, i32::from(rule.allow)));
        program.push(op(EXIT, 0, 0, 0, 0));
        // The kernel refuses programs with unreachable instructions.
        if length == 0 {
            return program;
        }
    }
    program.push(op(MOVE, 0, 0, 0, 0));
    program.push(op(EXIT, 0, 0, 0, 0));
    program
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        licence: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `load` has the layout that BPF_PROG_LOAD takes, and its pointers live through the
    // call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &load, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: bpf(2) just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches the program to the cgroup, which keeps it until the cgroup is removed.
fn attach_to(cgroup: &File, program: &OwnedFd) -> io::Result<()> {
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let attach = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attach` has the layout that BPF_PROG_ATTACH takes.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &attach, size_of::<Attach>()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what the kernel would decide.
    fn allows(rules: &[Rule], kind: i32, major: i32, minor: i32, access: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let program = program(rules);
        let mut registers = [0_i32; 11];
        let mut at = 0;
        loop {
            let Instruction {
                code,
                registers: named,
                offset,
                immediate,
            } = program[at];
            let (to, from) = (usize::from(named & 15), usize::from(named >> 4));
            let jumps = match code {
                LOAD_WORD => {
                    registers[to] = context[offset as usize / 4];
                    false
                }
                AND => {
                    registers[to] &= immediate;
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] >>= immediate;
                    false
                }
                MOVE => {
                    registers[to] = immediate;
                    false
                }
                MOVE_REGISTER => {
                    registers[to] = registers[from];
                    false
                }
                JUMP_IF => registers[to] == immediate,
                JUMP_IF_NOT => registers[to] != immediate,
                JUMP_IF_NOT_REGISTER => registers[to] != registers[from],
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            };
            at += 1;
            if jumps {
                at += offset as usize;
            }
        }
    }

    fn rule(text: &str) -> Rule {
        Rule::of(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn device_that_no_rule_allows_can_be_made_but_not_opened() {
        let rules = [rule(r#"{"allow":false,"access":"rwm"}"#)];
        assert!(!allows(&rules, BLOCK, 254, 0, READ));
        assert!(allows(&rules, BLOCK, 254, 0, MKNOD));
        assert!(allows(&rules, CHAR, 1, 3, READ | WRITE));
    }

    #[test]
    fn device_with_a_rule_has_its_rights_only() {
        let rules = [
            rule(r#"{"allow":false}"#),
            rule(r#"{"allow":true,"type":"b","major":8,"minor":1,"access":"r"}"#),
        ];
        assert!(allows(&rules, BLOCK, 8, 1, READ));
        assert!(!allows(&rules, BLOCK, 8, 1, READ | WRITE));
        assert!(!allows(&rules, BLOCK, 8, 2, READ));
        assert!(!allows(&rules, CHAR, 8, 1, READ));
    }

    #[test]
    fn device_denied_after_all_were_allowed_is_denied() {
        let rules = [
            rule(r#"{"allow":true,"type":"a"}"#),
            rule(r#"{"allow":false,"type":"c","major":10,"access":"w"}"#),
        ];
        assert!(!allows(&rules, CHAR, 10, 1, READ | WRITE));
        assert!(allows(&rules, CHAR, 10, 1, READ));
        assert!(allows(&rules, BLOCK, 254, 0, READ | WRITE));
    }
}
