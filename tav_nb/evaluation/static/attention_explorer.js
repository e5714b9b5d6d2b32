async function render({ model, el }) {
  const root = createRoot(el, model, 'Attention explorer')
  const image = await loadImage(model.get('sheet'))
  const n = model.get('count')
  const blocks = model.get('blocks')
  const heads = model.get('heads')
  const top = addElement(root, 'div', { class: 'tav-row' })
  const captioned = (text) => {
    const node = addElement(top, 'figure')
    addElement(node, 'figcaption', {}, text)
    return node
  }
  const [square, matrix] = canvas(
    captioned('row attends to column'),
    180,
    180,
    'How much each frame (row) attends to each frame (column)',
    180,
  )
  const side = Math.max(34, Math.floor(540 / n))
  const high = Math.round((side * model.get('height')) / model.get('width'))
  const [, strip] = canvas(
    captioned('the frames; a bar is the weight for the chosen frame'),
    n * side,
    high + 40,
    'The frames, as bright as the chosen one attends to them',
    n * side,
  )
  player(root, model)
  const bar = addElement(root, 'div', { class: 'tav-bar' })
  const [block] = addSelect(bar, 'Block', blocks, (i) =>
    setTraits(model, { block: i, head: Math.min(model.get('head'), heads[i] - 1) }),
  )
  const names = (count) => ['all', ...Array(count).keys()]
  const [head, fill] = addSelect(bar, 'Head', names(heads[0]), (i) => setTraits(model, { head: i - 1 }))
  const status = addElement(root, 'div', { 'aria-live': 'polite' })
  onDrag(square, (x, y) => setTraits(model, { index: Math.floor(y * n) }))
  root.listen(['index', 'block', 'head'], () => {
    const at = model.get('block')
    const h = model.get('head')
    const query = model.get('index')
    const bytes = model.get('weights')
    const begin = heads.slice(0, at).reduce((a, b) => a + b, 0)
    const one = (head, i, j) => bytes.getUint8(((begin + head) * n + i) * n + j) / 255
    const all = [...Array(heads[at]).keys()]
    const weight =
      h < 0
        ? (i, j) => all.reduce((sum, head) => sum + one(head, i, j), 0) / heads[at]
        : (i, j) => one(h, i, j)
    const weightsOfQuery = [...Array(n).keys()].map((j) => weight(query, j))
    const most = Math.max(...weightsOfQuery)
    const order = [...weightsOfQuery.keys()].sort((a, b) => weightsOfQuery[b] - weightsOfQuery[a])
    if (head.options.length != heads[at] + 1) fill(names(heads[at]))
    block.value = at
    head.value = h + 1
    let top = 0
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) top = Math.max(top, weight(i, j))
    drawHeatMap(matrix, n, (i, j) => weight(i, j) / top, query)
    strip.clearRect(0, 0, n * side, high + 40)
    weightsOfQuery.forEach((look, j) => {
      strip.globalAlpha = 0.2 + (0.8 * look) / most
      strip.drawImage(image, ...frameRect(model, j), j * side, 40, side - 2, high)
      strip.globalAlpha = 1
      strip.fillStyle = j == query ? '#d55e00' : '#56b4e9'
      strip.fillRect(j * side, 38 - (36 * look) / most, side - 2, (36 * look) / most)
    })
    status.textContent = `Frame ${query} attends most to ${order
      .slice(0, 3)
      .map((j) => `${j} (${weightsOfQuery[j].toFixed(2)})`)
      .join(', ')}; evenly would be ${(1 / n).toFixed(2)}.`
  })
  return root.end
}

export default { render }
