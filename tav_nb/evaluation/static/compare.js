async function render({ model, el }) {
  const root = createRoot(el, model, 'Comparison')
  const [a, b] = await Promise.all([loadImage(model.get('sheet')), loadImage(model.get('other'))])
  const w = model.get('width')
  const h = model.get('height')
  const gap = 4
  const modes = ['wipe', 'side by side']
  const titles = model.get('titles')
  const text = addElement(root, 'div', { class: 'tav-bar' })
  addElement(text, 'span', {}, `left: ${titles[0]}`)
  addElement(text, 'span', {}, `right: ${titles[1]}`)
  const [view, context] = canvas(root, w, h, '')
  player(root, model)
  const bar = addElement(root, 'div', { class: 'tav-bar' })
  const [mode] = addSelect(bar, 'Show', modes, (i) => setTraits(model, { mode: modes[i] }))
  const wipe = addElement(addElement(bar, 'label', {}, 'Edge between left and right'), 'input', {
    type: 'range',
    min: 0,
    max: 100,
    class: 'tav-wipe',
    'aria-label': `Share of the frame that shows ${titles[0]}, in per cent`,
  })
  wipe.oninput = () => setTraits(model, { wipe: wipe.value / 100 })
  onDrag(view, (x) => {
    if (model.get('mode') == 'wipe') setTraits(model, { wipe: Math.round(100 * x) / 100 })
  })
  root.listen(['index', 'mode', 'wipe'], () => {
    const index = model.get('index')
    const beside = model.get('mode') != 'wipe'
    const edge = Math.round(w * model.get('wipe'))
    const [x, y] = frameRect(model, index)
    view.width = beside ? 2 * w + gap : w
    view.style.width = `${(beside ? 2 : 1) * Math.max(w, 224)}px`
    view.setAttribute('aria-label', `frame ${index} of ${titles.join(' and ')}, ${model.get('mode')}`)
    wipe.value = 100 * model.get('wipe')
    wipe.disabled = beside
    mode.value = modes.indexOf(model.get('mode'))
    context.drawImage(b, x, y, w, h, beside ? w + gap : 0, 0, w, h)
    if (beside) return context.drawImage(a, x, y, w, h, 0, 0, w, h)
    if (edge) context.drawImage(a, x, y, edge, h, 0, 0, edge, h)
    context.fillStyle = '#fff'
    context.fillRect(edge - 1, 0, 2, h)
  })
  return root.end
}

export default { render }
