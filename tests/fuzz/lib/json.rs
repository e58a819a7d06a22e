//! Mutates JSON as a tree, since bytes flipped at random hardly ever result in JSON again.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{json, Value};

use crate::random::Random;

/// Mutates a document in place, as libFuzzer's own mutator does. `words` are strings that the code
/// under test looks for.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32, words: &[&str]) -> usize {
    let mut random = Random::new(seed);
    match changed(&data[..size], &mut random, words) {
        Some(text) if text.len() <= max_size => {
            data[..text.len()].copy_from_slice(&text);
            text.len()
        }
        _ => fuzzer_mutate(data, size, max_size),
    }
}

/// Like [`mutate`], for a file with a document on each line.
pub fn mutate_lines(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    words: &[&str],
) -> usize {
    let mut random = Random::new(seed);
    let mut lines: Vec<Vec<u8>> = data[..size]
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    let at = random.below(lines.len());
    match random.below(8) {
        0 => lines.insert(at, lines[random.below(lines.len())].clone()),
        1 => drop(lines.remove(at)),
        2 => {
            let other = random.below(lines.len());
            lines.swap(at, other);
        }
        _ => match changed(&lines[at], &mut random, words) {
            Some(line) => lines[at] = line,
            None => return fuzzer_mutate(data, size, max_size),
        },
    }
    let text = lines.join(&b'\n');
    if text.len() > max_size {
        return fuzzer_mutate(data, size, max_size);
    }
    data[..text.len()].copy_from_slice(&text);
    text.len()
}

/// Returns the mutated text. Sometimes returns `None`, so that the bytes are mutated instead.
fn changed(text: &[u8], random: &mut Random, words: &[&str]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(text).ok()?;
    if random.below(16) == 0 {
        return None;
    }
    for _ in 0..=random.below(3) {
        let another = nth(&mut value, &mut { random.below(1 << 16) }).clone();
        let found = random.below(count(&value));
        let found = nth(&mut value, &mut { found });
        change(found, another, random, words);
    }
    serde_json::to_vec(&value).ok()
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// Returns the node with that number, counted from the top. A number past the end gives the top
/// itself.
fn nth<'v>(value: &'v mut Value, left: &mut usize) -> &'v mut Value {
    if *left == 0 {
        return value;
    }
    let inside = match value {
        Value::Array(items) => items.iter().position(|item| enters(item, left)),
        Value::Object(map) => map.values().position(|item| enters(item, left)),
        _ => None,
    };
    match (inside, value) {
        (Some(at), Value::Array(items)) => nth(&mut items[at], left),
        (Some(at), Value::Object(map)) => match map.values_mut().nth(at) {
            Some(item) => nth(item, left),
            None => unreachable!("a value that was just found"),
        },
        (_, value) => value,
    }
}

/// Returns whether the node is inside `value`. If not, reduces `left` by the number of nodes in
/// `value`.
fn enters(value: &Value, left: &mut usize) -> bool {
    let here = count(value);
    if *left <= here {
        *left -= 1;
        return true;
    }
    *left -= here;
    false
}

fn change(value: &mut Value, another: Value, random: &mut Random, words: &[&str]) {
    let word = (*random.pick(words)).to_owned();
    match value {
        Value::Array(items) if random.below(4) > 0 => match random.below(4) {
            0 => items.push(another),
            1 => items.push(word.into()),
            2 if !items.is_empty() => drop(items.remove(random.below(items.len()))),
            _ if !items.is_empty() => items.push(random.pick(items).clone()),
            _ => {}
        },
        Value::Object(map) if random.below(4) > 0 => {
            let key = map.keys().nth(random.below(map.len().max(1))).cloned();
            match (random.below(4), key) {
                (0, Some(key)) => drop(map.remove(&key)),
                (1, Some(key)) => {
                    if let Some(value) = map.remove(&key) {
                        map.insert(word, value);
                    }
                }
                (2, Some(key)) => drop(map.insert(key, another)),
                _ => drop(map.insert(word, another)),
            }
        }
        Value::String(text) if random.below(3) > 0 => match random.below(5) {
            0 => text.push_str(&word),
            1 => text.insert_str(0, &word),
            2 => *text = text.chars().take(random.below(text.len() + 1)).collect(),
            3 if text.len() < 256 => *text = text.repeat(1 + random.below(40)),
            _ => {
                let mut bytes = vec![0; text.len() + 8];
                bytes[..text.len()].copy_from_slice(text.as_bytes());
                let most = bytes.len();
                let length = fuzzer_mutate(&mut bytes, text.len(), most);
                *text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            }
        },
        _ => {
            *value = match random.below(8) {
                0..3 => word.into(),
                3 => another,
                4 => json!(random.pick(&[0, 1, -1, i64::MAX, i64::MIN, 1 << 32, 65_535, 4096])),
                5 => json!(u64::MAX),
                6 => random
                    .pick(&[json!(null), json!(true), json!(1.5), json!([]), json!({})])
                    .clone(),
                _ => json!([word]),
            }
        }
    }
}
