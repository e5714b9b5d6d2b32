// Draws three times the difference to the next frame
function changes(context, w, h, draw, index) {
  draw(index)
  const now = context.getImageData(0, 0, w, h)
  draw(index + 1)
  const after = context.getImageData(0, 0, w, h)
  for (let i = 0; i < now.data.length; i++) {
    if (i % 4 < 3) now.data[i] = 3 * Math.abs(now.data[i] - after.data[i])
  }
  context.putImageData(now, 0, 0)
}

function arrows(context, model, index) {
  const [rows, columns] = model.get('cells')
  const flow = model.get('flow')
  const w = model.get('width') / columns
  const h = model.get('height') / rows
  context.strokeStyle = context.fillStyle = '#d55e00'
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      const at = 2 * ((index * rows + y) * columns + x)
      const [dx, dy] = [flow.getInt8(at) / 4, flow.getInt8(at + 1) / 4]
      const [px, py] = [(x + 0.5) * w, (y + 0.5) * h]
      context.beginPath()
      context.moveTo(px, py)
      context.lineTo(px + dx, py + dy)
      context.stroke()
      context.fillRect(px + dx - 1, py + dy - 1, 2, 2)
    }
  }
}

async function render({ model, el }) {
  const root = createRoot(el, model, 'Consistency explorer')
  const image = await loadImage(model.get('sheet'))
  const w = model.get('width')
  const h = model.get('height')
  const count = model.get('count')
  const top = addElement(root, 'div', { class: 'tav-row' })
  const [view, context] = canvas(top, w, h, `${model.get('label')}, with what lies over it`, Math.max(w, 240))
  const [slice, time] = canvas(top, w, h, 'One row of pixels over time, time downwards', Math.max(w, 240))
  const draw = (index) => context.drawImage(image, ...frameRect(model, index), 0, 0, w, h)
  player(root, model)
  const bar = addElement(root, 'div', { class: 'tav-bar' })
  const worst = model.get('worst')
  const overlays = ['frame', 'difference', 'flow']
  const button = addElement(
    bar,
    'button',
    { type: 'button', class: 'tav-worst' },
    `Go to the worst pair: ${worst}, ${worst + 1}`,
  )
  button.onclick = () => setTraits(model, { index: worst })
  const words = ['the frame', 'the difference to the next frame, times 3', 'the optical flow to the next frame']
  const [overlay] = addSelect(bar, 'Show', words, (i) => setTraits(model, { overlay: overlays[i] }))
  const row = addElement(addElement(bar, 'label', {}, 'Row of pixels'), 'input', {
    type: 'range',
    min: 0,
    max: h - 1,
    class: 'tav-pixels',
    'aria-label': 'Row of pixels for the slice',
  })
  addElement(root, 'div', { 'aria-live': 'polite' }, model.get('verdict'))
  const graphs = addElement(root, 'div', { class: 'tav-row' })
  row.oninput = () => setTraits(model, { row: +row.value })
  onDrag(view, (x, y) => setTraits(model, { row: Math.floor(y * h) }))
  onDrag(slice, (x, y) => setTraits(model, { index: Math.floor(y * count) }))
  const curves = Object.keys(model.get('curves')).map((name) => curve(graphs, model, name))
  root.listen(['index', 'overlay', 'row'], () => {
    const index = model.get('index')
    const pair = Math.min(index, count - 2)
    const at = model.get('row')
    overlay.value = overlays.indexOf(model.get('overlay'))
    row.value = at
    if (model.get('overlay') == 'difference') changes(context, w, h, draw, pair)
    else draw(index)
    if (model.get('overlay') == 'flow') arrows(context, model, pair)
    context.fillStyle = '#d55e00a0'
    context.fillRect(0, at, w, 1)
    for (let t = 0; t < count; t++) {
      const [x, y] = frameRect(model, t)
      time.drawImage(image, x, y + at, w, 1, 0, (t * h) / count, w, h / count + 0.5)
    }
    time.strokeStyle = '#d55e00'
    time.strokeRect(0.5, (index * h) / count + 0.5, w - 1, h / count - 1)
    for (const show of curves) show(index)
  })
  return root.end
}

export default { render }
