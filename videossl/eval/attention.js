"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { height, width } = data;
const numCells = height * width;
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
const [query, ...keys] = data.features.map((text, index) => ({
  values: new Int16Array(bytesOf(text)),
  scales: new Float32Array(bytesOf(data.scales[index])),
}));
const numChannels = query.values.length / numCells;

function product(cell, key, place) {
  let sum = 0;
  const [a, b] = [cell * numChannels, place * numChannels];
  for (let i = 0; i < numChannels; i++) sum += query.values[a + i] * key.values[b + i];
  return sum * query.scales[cell] * key.scales[place];
}

const offset = (row, column, place) => [Math.floor(place / width) - row, (place % width) - column];

function sees(row, column, place) {
  const [down, across] = offset(row, column, place).map(Math.abs);
  if (data.isCircle) return down ** 2 + across ** 2 < data.radius ** 2;
  return Math.max(down, across) <= data.radius;
}

// What distance takes from a logit, where weights fall off with it.
function falloff(row, column, place) {
  if (data.distanceSigma === null) return 0;
  const [down, across] = offset(row, column, place);
  return (down ** 2 + across ** 2) / (2 * data.distanceSigma ** 2);
}

// What the cell sees in some of the frames it reads, strongest first if only those count: [frame, place, logit].
function seen(row, column, slots) {
  const cells = [];
  for (const slot of slots) {
    const frame = data.read[slot];
    const isUnmasked = slot < data.numUnmasked;
    const isWhole = data.radius === null || isUnmasked;
    for (let place = 0; place < numCells; place++) {
      if (!isWhole && !sees(row, column, place)) continue;
      const logit = product(row * width + column, keys[frame], place) / data.temperature;
      cells.push([frame, place, isUnmasked ? logit : logit - falloff(row, column, place)]);
    }
  }
  return data.topK === null ? cells : cells.sort((one, other) => other[2] - one[2]);
}

// Per frame the weights of all its cells: softmax over the k strongest, as in label propagation.
function weigh(row, column) {
  const weights = keys.map(() => new Float64Array(numCells));
  const slots = data.read.map((_, slot) => slot);
  const groups = data.isPerFrame ? slots.map((slot) => [slot]) : [slots];
  for (const group of groups) {
    const cells = seen(row, column, group);
    const kept = data.topK === null ? cells : cells.slice(0, data.topK);
    const peak = kept.reduce((most, cell) => Math.max(most, cell[2]), -Infinity);
    const counted = data.renormalize ? kept : cells;
    const total = counted.reduce((sum, cell) => sum + Math.exp(cell[2] - peak), 0);
    for (const [frame, place, logit] of kept) {
      weights[frame][place] += Math.exp(logit - peak) / total / groups.length;
    }
  }
  return weights;
}

function paint(canvas, colourOf) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let place = 0; place < numCells; place++) image.data.set(colourOf(place), 4 * place);
  context.putImageData(image, 0, 0);
}

// The root, since most of the weight lies in a few cells and the others should be seen too.
function heat(share) {
  if (share === 0) return [0, 0, 0, 0];
  const h = Math.sqrt(share);
  return [235 + 20 * h, 40 + 185 * h, 30 + 30 * h, 255 * (0.35 + 0.6 * h)];
}

let cell = data.cell;

function look(row, column) {
  cell = [Math.min(height - 1, Math.max(0, row)), Math.min(width - 1, Math.max(0, column))];
  const weights = weigh(...cell);
  const peak = Math.max(...weights.map((frame) => frame.reduce((a, b) => Math.max(a, b), 0)));
  document.querySelectorAll(".key").forEach((figure, index) => {
    const share = weights[index].reduce((a, b) => a + b, 0);
    figure.dataset.share = share;
    figure.querySelector("b").textContent = `${(100 * share).toFixed(1)} %`;
    paint(figure.querySelector("canvas"), (place) => heat(weights[index][place] / peak));
  });
  const own = cell[0] * width + cell[1];
  const figure = document.querySelector(".query");
  figure.querySelector("b").textContent = `row ${cell[0]}, column ${cell[1]}`;
  paint(figure.querySelector("canvas"), (place) => [255, 60, 40, place === own ? 255 : 0]);
}

const frame = document.querySelector(".query .frame");
frame.addEventListener("click", (event) => {
  const box = frame.getBoundingClientRect();
  const along = (event.clientX - box.left) / box.width;
  const down = (event.clientY - box.top) / box.height;
  look(Math.floor(down * height), Math.floor(along * width));
});
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
frame.addEventListener("keydown", (event) => {
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  look(cell[0] + step[0], cell[1] + step[1]);
});
look(...cell);
