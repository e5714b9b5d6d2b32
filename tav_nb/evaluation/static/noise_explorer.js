async function render({ model, el }) {
  const root = createRoot(el, model, 'Noise explorer')
  const n = model.get('count')
  const stops = model.get('strengths')
  const top = addElement(root, 'div', { class: 'tav-row' })
  const figure = (text) => {
    const node = addElement(top, 'figure')
    addElement(node, 'figcaption', {}, text)
    return node
  }
  const parts = ['correlation of frame (row) and frame (column)', 'the noise that the frame starts from', 'the frame'].map(figure)
  const [, matrix] = canvas(parts[0], 180, 180, 'Correlation of the noise of every two frames', 180)
  const w = model.get('width')
  const h = model.get('height')
  const [noisy, before] = canvas(parts[1], 64, 64, 'The noise of this frame', 180)
  const [, after] = canvas(parts[2], w, h, 'This frame of the result', 180)
  noisy.classList.add('tav-sharp')
  before.imageSmoothingEnabled = false
  player(root, model)
  const bar = addElement(root, 'div', { class: 'tav-bar' })
  const label = addElement(bar, 'label', {}, 'Strength of the noise')
  const text = addElement(label, 'span')
  const slider = addElement(label, 'input', {
    type: 'range',
    min: 0,
    max: stops.length - 1,
    class: 'tav-strength',
    'aria-label': 'Strength of the noise',
  })
  const status = addElement(root, 'div', { 'aria-live': 'polite' })
  const share = (a) => (a * a) / (1 + a * a)
  const related = (a, i, j) =>
    i == j
      ? 1
      : model.get('kind') == 'progressive'
        ? Math.sqrt(share(a)) ** Math.abs(i - j)
        : model.get('kind') == 'mixed'
          ? share(a)
          : 0
  const preview = () => {
    const strength = stops[slider.value]
    drawHeatMap(matrix, n, (i, j) => related(strength, i, j), model.get('index'))
    text.textContent = strength
    slider.setAttribute(
      'aria-valuetext',
      `${strength}: neighbours correlate by ${related(strength, 0, 1).toFixed(2)}`,
    )
  }
  let previewing = false
  let timer
  slider.oninput = () => {
    previewing = true
    preview()
  }
  // Waits, so that not every strength is drawn while the slider is moved with the keys
  slider.onchange = () => {
    clearTimeout(timer)
    timer = setTimeout(() => {
      previewing = false
      setTraits(model, { stop: +slider.value })
    }, 300)
  }
  let images = {}
  const draw = async () => {
    const stop = model.get('stop')
    const made = model.get('results')[stop]
    const index = model.get('index')
    if (!previewing) slider.value = stop
    preview()
    status.textContent =
      model.get('message') ||
      (made
        ? `Strength ${stops[stop]}: neighbours correlate by ${related(stops[stop], 0, 1).toFixed(2)}`
        : `Strength ${stops[stop]} has not been drawn; a running notebook draws it.`)
    before.canvas.style.opacity = after.canvas.style.opacity = made ? 1 : 0.2
    if (!made) return
    if (images.stop != stop) {
      images = { stop, start: await loadImage(made.start), video: await loadImage(made.video) }
    }
    const columns = model.get('columns')
    const rows = Math.ceil(n / columns)
    for (const [context, image] of [
      [before, images.start],
      [after, images.video],
    ]) {
      const sw = image.width / columns
      const sh = image.height / rows
      context.drawImage(
        image,
        (index % columns) * sw,
        Math.floor(index / columns) * sh,
        sw,
        sh,
        0,
        0,
        context.canvas.width,
        context.canvas.height,
      )
    }
  }
  root.listen(['index', 'stop', 'results', 'busy', 'message'], draw)
  return root.end
}

export default { render }
