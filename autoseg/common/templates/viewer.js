/* Volumes in the page: NiiVue where WebGL2 works, else slices on a canvas. */

const LAYERS = ["image", "reference", "prediction", "difference"];

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function rgb(colour) {
  return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
}

/** A NIfTI file of bytes in the patient's axes: left, back, head. */
function asNifti(bytes, { size, spacing }, slope = 1, intercept = 0) {
  const file = new ArrayBuffer(352 + bytes.length);
  const view = new DataView(file);
  view.setInt32(0, 348, true);
  [3, ...size, 1, 1, 1, 1].forEach((n, i) => view.setInt16(40 + 2 * i, n, true));
  view.setInt16(70, 2, true); // uint8
  view.setInt16(72, 8, true);
  [1, ...spacing].forEach((mm, i) => view.setFloat32(76 + 4 * i, mm, true));
  view.setFloat32(108, 352, true);
  view.setFloat32(112, slope, true);
  view.setFloat32(116, intercept, true);
  view.setUint8(123, 2); // mm
  view.setInt16(254, 1, true);
  [-1, -1, 1].forEach((sign, axis) => { // NIfTI's axes are right to left, back to front
    view.setFloat32(280 + 20 * axis, sign * spacing[axis], true);
    view.setFloat32(292 + 16 * axis, (-sign * spacing[axis] * (size[axis] - 1)) / 2, true);
  });
  [0x6e, 0x2b, 0x31, 0].forEach((byte, i) => view.setUint8(344 + i, byte));
  new Uint8Array(file).set(bytes, 352);
  return file;
}

function coloursOf(about, layer) {
  return (layer === "difference" ? about.errors : about.classes).map(([, colour]) => colour);
}

let library = null;

function loadNiivue() {
  library ??= (async () => {
    const code = new TextDecoder().decode(await inflate(document.getElementById("niivue").textContent.trim()));
    const script = document.createElement("script");
    script.textContent = code;
    document.head.append(script);
    return globalThis.niivue;
  })();
  return library;
}

async function startNiivue(canvas, about, layers) {
  const { Niivue, NVImage, SHOW_RENDER } = await loadNiivue();
  const options = {
    backColor: [0, 0, 0, 1], isRadiologicalConvention: true, logLevel: "error", loadingText: "",
    dragAndDropEnabled: false, multiplanarShowRender: SHOW_RENDER.NEVER, sagittalNoseLeft: true,
    crosshairWidth: 0.3, crosshairColor: [1, 1, 1, 0.6], fontColor: [1, 1, 1, 1],
  };
  const viewer = new Niivue(options);
  await viewer.attachToCanvas(canvas);
  for (const [name, bytes] of Object.entries(layers)) {
    const isImage = name === "image";
    const scale = isImage ? [(about.high - about.low) / 255, about.low] : [];
    const volume = await NVImage.new(asNifti(bytes, about, ...scale), `${name}.nii`, isImage ? "gray" : "");
    if (!isImage) {
      const colours = [[0, 0, 0], ...coloursOf(about, name).map(rgb)];
      const [R, G, B] = [0, 1, 2].map((i) => colours.map((colour) => colour[i]));
      volume.setColormapLabel({ R, G, B, A: colours.map((_, i) => (i ? 255 : 0)), I: colours.map((_, i) => i) });
    }
    viewer.addVolume(volume);
  }
  viewer.setSliceType(viewer.sliceTypeMultiplanar);
  const place = about.at.map((k, axis) =>
    (axis < 2 ? -1 : 1) * about.spacing[axis] * (k - (about.size[axis] - 1) / 2));
  viewer.scene.crosshairPos = viewer.mm2frac(place);
  const names = Object.keys(layers);
  return {
    show(opacities, [low, high]) {
      names.forEach((name, i) => { viewer.volumes[i].opacity = opacities[name]; });
      [viewer.volumes[0].cal_min, viewer.volumes[0].cal_max] = [low, high];
      viewer.updateGLVolume();
    },
  };
}

/** Three planes on a plain canvas; a click moves the point that they go through. */
function startSlices(canvas, about, layers) {
  const { size, spacing } = about;
  const at = about.at.slice();
  const planes = [[2, 0, 1], [1, 0, 2], [0, 1, 2]]; // the axis across, to the right, down
  const sides = [["R", "L"], ["A", "P"], ["I", "S"]];
  const stride = [1, size[0], size[0] * size[1]];
  const mm = (axis) => size[axis] * spacing[axis];
  let opacities = {}, limits = [0, 1];
  const places = () => {
    const gap = 6;
    const scale = (canvas.width - 2 * gap) / planes.reduce((sum, [, x]) => sum + mm(x), 0);
    let left = 0;
    return planes.map(([, x, y]) => {
      const place = { left, width: scale * mm(x), height: scale * mm(y) };
      left += place.width + gap;
      return place;
    });
  };
  const draw = () => {
    canvas.width = canvas.clientWidth || 900;
    const where = places();
    canvas.height = Math.ceil(Math.max(...where.map((place) => place.height)));
    canvas.style.height = canvas.parentElement.style.height = `${canvas.height}px`;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    planes.forEach(([across, x, y], index) => {
      const picture = new ImageData(size[x], size[y]);
      for (let row = 0; row < size[y]; row += 1) {
        const deep = y === 2 ? size[2] - 1 - row : row;
        for (let column = 0; column < size[x]; column += 1) {
          const voxel = at[across] * stride[across] + column * stride[x] + deep * stride[y];
          const value = about.low + (layers.image[voxel] * (about.high - about.low)) / 255;
          const grey = Math.max(0, Math.min(255, (255 * (value - limits[0])) / (limits[1] - limits[0])));
          const pixel = [grey, grey, grey].map((part) => part * opacities.image);
          for (const name of LAYERS.slice(1)) {
            const label = layers[name] ? layers[name][voxel] : 0;
            if (label) {
              const colour = rgb(coloursOf(about, name)[label - 1]);
              pixel.forEach((part, i) => { pixel[i] = part + opacities[name] * (colour[i] - part); });
            }
          }
          picture.data.set([...pixel, 255], 4 * (row * size[x] + column));
        }
      }
      const part = document.createElement("canvas");
      [part.width, part.height] = [size[x], size[y]];
      part.getContext("2d").putImageData(picture, 0, 0);
      const { left, width, height } = where[index];
      context.drawImage(part, left, 0, width, height);
      context.fillStyle = "#fff";
      context.font = "14px sans-serif";
      const [top, bottom] = y === 2 ? ["S", "I"] : ["A", "P"];
      context.fillText(sides[x][0], left + 4, height / 2);
      context.fillText(sides[x][1], left + width - 14, height / 2);
      context.fillText(top, left + width / 2, 14);
      context.fillText(bottom, left + width / 2, height - 5);
    });
  };
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const [right, down] = [event.clientX - box.left, event.clientY - box.top];
    places().forEach(({ left, width, height }, index) => {
      const [, x, y] = planes[index];
      if (right >= left && right < left + width && down < height) {
        at[x] = Math.floor(((right - left) / width) * size[x]);
        const deep = Math.floor((down / height) * size[y]);
        at[y] = y === 2 ? size[2] - 1 - deep : deep;
        draw();
      }
    });
  });
  return { show(shown, window) { [opacities, limits] = [shown, window]; draw(); } };
}

async function openViewer(article) {
  const about = JSON.parse(article.querySelector("script").textContent);
  const canvas = article.querySelector("canvas");
  const layers = {};
  for (const name of LAYERS) if (about.layers[name]) layers[name] = await inflate(about.layers[name]);
  let viewer;
  const probe = document.createElement("canvas").getContext("webgl2");
  if (probe && !location.hash.includes("slices")) {
    probe.getExtension("WEBGL_lose_context")?.loseContext();
    viewer = await startNiivue(canvas, about, layers);
    article.dataset.state = "niivue";
  } else {
    viewer = startSlices(canvas, about, layers);
    article.dataset.state = "slices";
  }
  const controls = article.querySelector(".controls");
  const of = (name) => controls.querySelector(`[name="${name}"]`);
  const show = () => {
    const opacity = Number(of("opacity").value) / 100;
    const opacities = Object.fromEntries(
      LAYERS.map((name) => [name, of(name)?.checked ? (name === "image" ? 1 : opacity) : 0]));
    const [low, high] = [Number(of("low").value), Number(of("high").value)];
    viewer.show(opacities, [low, Math.max(high, low + 1e-6)]);
  };
  controls.addEventListener("input", show);
  if (article.dataset.state === "slices") addEventListener("resize", show);
  show();
}

const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (isIntersecting && !target.dataset.state) {
      target.dataset.state = "loading";
      openViewer(target).catch((error) => {
        target.dataset.state = "failed";
        target.querySelector(".failure").textContent = `The viewer cannot start in this browser: ${error.message}`;
      });
    }
  }
});
document.querySelectorAll(".viewer").forEach((article) => watcher.observe(article));
