// Prints the first three server-sent events of a URL, and how long the last came after the first.
// usage: node events.js URL
const [url] = process.argv.slice(2);
require('http').get(url, (response) => {
  const times = [];
  response.on('data', (part) => {
    for (const [event] of String(part).matchAll(/data: .*/g)) {
      times.push(Date.now());
      console.log(event);
      if (times.length === 3) {
        console.log(times[2] - times[0] > 500 ? 'one after another' : 'all at once');
        process.exit(0);
      }
    }
  });
});
