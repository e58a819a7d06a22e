// Sends a text over a WebSocket and prints the answer. usage: node socket.js URL TEXT
const [url, text] = process.argv.slice(2);
const socket = new (require('ws'))(url);
socket.on('open', () => socket.send(text));
socket.on('message', (answer) => { console.log(String(answer)); process.exit(0); });
socket.on('error', (error) => { console.error(String(error)); process.exit(1); });
