"use strict";
// The players of the page. All signals of a song run at once, from one time of one clock; which of
// them is heard is a matter of their gains, so that a switch loses no sample.

const LEAD_S = 0.06; // between the press and the first sample, so that all signals are ready
const RAMP_S = 0.008; // of a switch, against clicks
const FLOOR_DB = -15; // scores below are drawn here
const TICKS_HZ = [100, 1000, 10000];

const data = JSON.parse(document.getElementById("data").textContent);
const players = [];
let clock = null; // the AudioContext: browsers allow none before the first press
let current = null; // the player that keys act on

function make(tag, properties = {}, ...children) {
  const { dataset = {}, ...others } = properties;
  const node = Object.assign(document.createElement(tag), others);
  Object.assign(node.dataset, dataset);
  node.append(...children);
  return node;
}

function button(text, action, properties = {}) {
  const node = make("button", { type: "button", ...properties }, ...[text].flat());
  node.addEventListener("click", (event) => {
    action();
    if (event.detail) node.blur(); // the space bar is to play, not to press this again
  });
  return node;
}

function group(name, nodes) {
  const node = make("div", { className: "group" }, make("span", {}, name), ...nodes);
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", name);
  return node;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const modelColour = (k) => colour(`--model-${k % 6}`);
const decibels = (value) => (value == null ? "no score" : `${value.toFixed(2)} dB`);

// A canvas's context in CSS pixels, emptied.
function canvasOf(canvas) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width, height };
}

function drawWave(canvas, peaks) {
  const { context, width, height } = canvasOf(canvas);
  const step = width / peaks.length;
  context.fillStyle = colour("--wave");
  peaks.forEach((peak, k) => {
    const half = Math.max(0.5, (peak / 100) * (height / 2 - 1));
    context.fillRect(k * step, height / 2 - half, Math.max(1, step), 2 * half);
  });
}

// Lines of scores by seconds: of `stem`, for the time `from` .. `from + seconds`.
function drawScores(canvas, stem, from, seconds, shaded) {
  const { context, width, height } = canvasOf(canvas);
  const shown = stem.estimates.flatMap((each) => each.seconds.slice(from, from + seconds));
  const all = shown.filter((value) => value != null);
  const low = Math.floor(Math.max(FLOOR_DB, Math.min(0, ...all)));
  const high = Math.ceil(Math.max(low + 4, ...all));
  const y = (value) => 13 + ((high - Math.max(low, value)) / (high - low)) * (height - 16);
  const x = (second) => ((second - from) / seconds) * width;
  if (shaded) {
    context.fillStyle = colour("--shade");
    context.fillRect(x(shaded[0]), 0, x(shaded[1]) - x(shaded[0]), height);
  }
  context.font = "10px system-ui, sans-serif";
  const step = [1, 2, 5, 10, 20].find((each) => (high - low) / each <= height / 22) || 50;
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) {
    context.fillStyle = colour("--line");
    context.fillRect(0, y(tick), width, tick === 0 ? 1.5 : 0.7);
    context.fillStyle = colour("--soft");
    context.fillText(tick, 2, y(tick) - 2);
  }
  for (const estimate of stem.estimates) {
    context.strokeStyle = modelColour(estimate.model);
    context.lineWidth = 2;
    context.beginPath();
    let gap = true;
    estimate.seconds.forEach((value, second) => {
      if (second < from || second >= from + seconds) return;
      if (value != null) {
        gap ? context.moveTo(x(second), y(value)) : context.lineTo(x(second), y(value));
        context.lineTo(x(second + 1), y(value));
      }
      gap = value == null;
    });
    context.stroke();
  }
}

class Player {
  constructor(song, index) {
    Object.assign(this, { song, stem: 0, choice: 0, place: 0, turn: 0, playing: false });
    this.card = make("section", { className: "song", id: `song-${index}` });
    this.card.setAttribute("aria-label", song.name);
    this.card.append(this.makeTitle(), this.makeControls(), ...this.makeStacks());
    this.readout = make("p", { className: "readout" });
    this.card.append(this.readout);
    this.card.addEventListener("pointerdown", () => this.activate());
    this.card.addEventListener("focusin", () => this.activate());
    new ResizeObserver(() => this.draw()).observe(this.stack);
    this.chooseStem(0);
  }

  // What can be heard of the chosen stem.
  get choices() {
    const stem = this.song.stems[this.stem];
    const estimates = stem.estimates.map(({ model }) => ({
      id: `estimate/${model}/${stem.name}`,
      name: data.models.length > 1 ? `Estimate ${data.models[model]}` : "Estimate",
      model,
    }));
    return [
      { id: "mixture", name: "Mixture" },
      { id: `reference/${stem.name}`, name: "Reference" },
      ...estimates,
    ];
  }

  get position() {
    if (!this.playing) return this.place;
    const heard = clock.currentTime - this.startedAt - (clock.outputLatency || 0);
    return Math.min(this.song.seconds, this.place + Math.max(0, heard));
  }

  makeTitle() {
    const { name, reason, first, seconds, songSeconds, gainDb } = this.song;
    const title = make("div", { className: "title" }, make("h3", {}, name));
    if (reason) title.append(make("span", { className: "badge" }, `${reason} by uSDR`));
    this.about = make("span");
    const part = `Seconds ${first} to ${Math.round(first + seconds)} of ${Math.round(songSeconds)}`;
    const quieter = gainDb < -0.05 ? `, played ${(-gainDb).toFixed(1)} dB quieter` : "";
    return make("div", {}, title, make("p", { className: "about" }, `${part}${quieter}. `, this.about));
  }

  makeControls() {
    this.playButton = button("▶ Play", () => this.toggle(), { className: "play" });
    this.clockText = make("span", { className: "clock" });
    this.stemButtons = this.song.stems.map((stem, k) =>
      button(stem.name, () => this.chooseStem(k), { dataset: { stem: stem.name } }));
    this.choiceGroup = group("Listen to", []);
    this.meter = make("meter", { min: -60, max: 0, value: -60 });
    this.meter.setAttribute("aria-label", "level in dB");
    const worst = button("Worst second", () => this.goToWorst());
    const controls = make("div", { className: "controls" }, this.playButton, this.clockText,
      this.meter);
    if (this.stemButtons.length > 1) controls.append(group("Stem", this.stemButtons));
    controls.append(this.choiceGroup, worst);
    return controls;
  }

  makeStacks() {
    this.wave = make("canvas", { className: "wave" });
    this.scores = make("canvas", { className: "scores" });
    this.waveName = make("div", { className: "row-name" });
    this.scoresName = make("div", { className: "row-name" });
    this.pictures = make("div", { className: "pictures" });
    this.head = make("div", { className: "head" });
    this.line = this.makeTimeLine();
    this.stack = make("div", { className: "stack" }, this.waveName, this.plot(this.wave),
      this.scoresName, this.plot(this.scores), this.pictures, this.line, this.head);
    if (this.song.songSeconds < this.song.seconds + 1) return [this.stack];
    this.whole = make("canvas", { className: "whole" });
    const name = make("div", { className: "row-name" }, make("b", {}, "Whole song"), "uSDR, dB");
    return [make("div", { className: "stack" }, name,
      make("div", { className: "plot", style: "cursor: default" }, this.whole)), this.stack];
  }

  // A row of the stack: a press goes there and plays.
  plot(content, className = "") {
    const node = make("div", { className: `plot ${className}` }, content);
    const second = (event) => {
      const box = node.getBoundingClientRect();
      return Math.max(0, ((event.clientX - box.left) / box.width) * this.song.seconds);
    };
    node.addEventListener("click", (event) => this.start(second(event)));
    node.addEventListener("pointermove", (event) => this.describe(second(event)));
    return node;
  }

  makeTimeLine() {
    const { first, seconds } = this.song;
    const line = make("div", { className: "time-line", tabIndex: 0 });
    const step = [1, 2, 5, 10, 20, 60].find((each) => seconds / each <= 12) || 120;
    for (let t = Math.ceil(first / step) * step; t <= first + seconds; t += step) {
      line.append(make("span", { style: `left: ${(100 * (t - first)) / seconds}%` }, `${t}`));
    }
    line.setAttribute("role", "slider");
    line.setAttribute("aria-label", `place in ${this.song.name}, in seconds`);
    line.setAttribute("aria-valuemin", first);
    line.setAttribute("aria-valuemax", (first + seconds).toFixed(1));
    return line;
  }

  chooseStem(k) {
    this.stem = k;
    this.stemButtons.forEach((node, each) => node.setAttribute("aria-pressed", each === k));
    const nodes = this.choices.map(({ id, name }, each) =>
      button([make("small", {}, each + 1), name], () => this.choose(each), { dataset: { id } }));
    this.choiceGroup.replaceChildren(this.choiceGroup.firstChild, ...nodes);
    this.about.replaceChildren(...this.song.stems[k].estimates.map(({ model, usdr, csdr }) => {
      const dot = make("span", { className: "dot", style: `background: var(--model-${model % 6})` });
      const name = data.models[model];
      return make("span", {}, dot, `${name}: uSDR ${usdr}, cSDR ${csdr} dB of the whole song. `);
    }));
    this.showPictures();
    this.choose(Math.min(this.choice, nodes.length - 1));
  }

  choose(k) {
    if (k >= this.choices.length) return;
    this.choice = k;
    [...this.choiceGroup.querySelectorAll("button")].forEach((node, each) =>
      node.setAttribute("aria-pressed", each === k));
    const { id, name } = this.choices[k];
    for (const [each, gain] of Object.entries(this.gains || {})) {
      gain.gain.setTargetAtTime(each === id ? 1 : 0, clock.currentTime, RAMP_S);
    }
    this.waveName.replaceChildren(make("b", {}, name), "waveform");
    this.draw();
  }

  showPictures() {
    const stem = this.song.stems[this.stem];
    this.scoresName.replaceChildren(make("b", {}, `uSDR of ${stem.name}`), "each second, dB");
    const rows = this.choices.flatMap(({ id, name, model }) => {
      const error = `error/${model}/${stem.name}`;
      const one = [{ id, name }];
      return model == null ? one : [...one, { id: error, name: name.replace("Estimate", "Error") }];
    });
    this.pictures.replaceChildren(...rows.flatMap(({ id, name }) => {
      const image = make("img", { src: this.song.images[id], draggable: false });
      image.alt = `Spectrogram: ${name} of ${stem.name}`;
      const row = this.plot(image, "picture");
      const [low, high] = this.song.hz;
      row.append(...TICKS_HZ.filter((hz) => hz > low && hz < high).map((hz) =>
        make("span", {
          className: "tick",
          style: `bottom: ${(100 * Math.log(hz / low)) / Math.log(high / low)}%`,
        }, hz < 1000 ? `${hz} Hz` : `${hz / 1000} kHz`)));
      const what = id.startsWith("error") ? "reference − estimate" : "spectrogram";
      return [make("div", { className: "row-name" }, make("b", {}, name), what), row];
    }));
  }

  draw() {
    const { song } = this;
    const stem = song.stems[this.stem];
    drawWave(this.wave, song.peaks[this.choices[this.choice].id]);
    drawScores(this.scores, stem, song.first, song.seconds);
    const part = [song.first, song.first + song.seconds];
    if (this.whole) drawScores(this.whole, stem, 0, song.songSeconds, part);
    this.showPlace();
  }

  showPlace() {
    const { first, seconds } = this.song;
    const at = this.position;
    const plot = this.wave.parentElement;
    this.head.style.left = `${plot.offsetLeft + (at / seconds) * plot.clientWidth}px`;
    this.clockText.textContent = `${at.toFixed(1)} / ${seconds.toFixed(1)} s`;
    this.line.setAttribute("aria-valuenow", (first + at).toFixed(1));
  }

  describe(at) {
    const second = Math.floor(this.song.first + at);
    const scores = this.song.stems[this.stem].estimates.map(({ model, seconds }) =>
      `${data.models[model]} ${decibels(seconds[second])}`);
    this.readout.textContent = `Second ${second}: ${scores.join(", ")}`;
  }

  activate() {
    if (current !== this) current?.leave();
    current = this;
    players.forEach((player) => player.card.classList.toggle("active", player === this));
  }

  toggle() {
    this.playing ? this.pause() : this.start(this.place);
  }

  async start(at) {
    this.activate();
    this.place = at >= this.song.seconds ? 0 : at;
    const turn = ++this.turn;
    this.playing = false;
    this.stop();
    this.playButton.textContent = "…";
    try {
      clock ||= new AudioContext();
      await clock.resume();
      this.buffers ||= await this.decode();
    } catch (error) {
      this.pause();
      this.readout.replaceChildren(make("span", { className: "problem" }, `No sound: ${error}`));
      return;
    }
    if (turn !== this.turn) return;
    this.run(turn);
  }

  async decode() {
    const decoded = Object.entries(this.song.audio).map(async ([id, text]) => {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      return [id, await clock.decodeAudioData(bytes.buffer)];
    });
    return Object.fromEntries(await Promise.all(decoded));
  }

  run(turn) {
    const chosen = this.choices[this.choice].id;
    this.analyser = new AnalyserNode(clock, { fftSize: 2048 });
    this.analyser.connect(clock.destination);
    this.startedAt = clock.currentTime + LEAD_S;
    this.sources = [];
    this.gains = {};
    for (const [id, buffer] of Object.entries(this.buffers)) {
      this.gains[id] = new GainNode(clock, { gain: id === chosen ? 1 : 0 });
      const source = new AudioBufferSourceNode(clock, { buffer });
      source.connect(this.gains[id]).connect(this.analyser);
      source.start(this.startedAt, this.place);
      this.sources.push(source);
    }
    this.sources[0].onended = () => {
      if (turn !== this.turn) return;
      this.pause();
      this.place = 0;
      this.showPlace();
    };
    this.playing = true;
    this.playButton.textContent = "❚❚ Pause";
    this.follow(turn);
  }

  // Moves what shows the place and the level, as long as this run lasts.
  follow(turn) {
    if (turn !== this.turn || !this.playing) return;
    this.showPlace();
    this.describe(this.position);
    const samples = new Float32Array(this.analyser.fftSize);
    this.analyser.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
    this.meter.value = 10 * Math.log10(power + 1e-9);
    requestAnimationFrame(() => this.follow(turn));
  }

  pause() {
    this.place = this.position;
    this.turn += 1;
    this.playing = false;
    this.stop();
    this.playButton.textContent = "▶ Play";
    this.meter.value = -60;
    this.showPlace();
  }

  stop() {
    this.sources?.forEach((source) => source.stop());
    this.analyser?.disconnect();
    this.sources = this.gains = this.analyser = null;
  }

  // Another song is to be heard: decoded, this one would take some 100 MB.
  leave() {
    this.pause();
    this.buffers = null;
  }

  move(seconds) {
    const at = Math.min(this.song.seconds, Math.max(0, this.position + seconds));
    if (this.playing) this.start(at);
    else this.place = at;
    this.showPlace();
  }

  goToWorst() {
    const { first, seconds, stems } = this.song;
    const { estimates } = stems[this.stem];
    const heard = this.choices[this.choice].model;
    const { seconds: scores } = estimates.find(({ model }) => model === heard) || estimates[0];
    const here = scores.slice(first, first + Math.ceil(seconds)).map((v) => v ?? Infinity);
    this.start(Math.max(0, here.indexOf(Math.min(...here))));
  }
}

function pressed(event) {
  const player = current || players[0];
  const onButton = event.target.closest("button, summary, a");
  if (!player || event.ctrlKey || event.altKey || event.metaKey) return;
  const key = event.key.toLowerCase();
  if (key === " " && !onButton) player.toggle();
  else if (/^[1-9]$/.test(key)) player.choose(Number(key) - 1);
  else if (key === "s") player.chooseStem((player.stem + 1) % player.song.stems.length);
  else if (key === "w") player.goToWorst();
  else if (key === "arrowleft") player.move(-1);
  else if (key === "arrowright") player.move(1);
  else return;
  event.preventDefault();
}

players.push(...data.songs.map((song, k) => new Player(song, k)));
document.getElementById("songs").append(...players.map((player) => player.card));
document.addEventListener("keydown", pressed);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  players.forEach((player) => player.draw()));
